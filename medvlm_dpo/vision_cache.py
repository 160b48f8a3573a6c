"""Features of the frozen vision tower, kept by picture: a later step, cell or evaluation reads them in place of running the tower."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Float
from torch import Tensor

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.cache.blocks import Array
from medvlm_dpo.cache.store import BlockStore, StoreError
from medvlm_dpo.cache.tensors import array_of, tensor_of
from medvlm_dpo.data.images import CHECK_NAME
from medvlm_dpo.vocab import ImageSource

PIXEL_PACKAGES = ("pillow", "transformers")  # decode, resize and normalise pictures
PICTURES_PER_BLOCK = 32  # also encoded together; 38 MB of features for CLIP ViT-L/14-336 in bfloat16


@final
class VisionCache:
    """Features of the vision tower by the content of a picture, memory-mapped.

    They are taken before the projector, where they are smallest. What another tower, preprocessing or dtype gave is never used.

    Args:
        backbone: loaded; its tower and projector frozen (`vision_obstacle` is None).
        folder: of the store; many processes and models may share it.
        limit_gb: 10^9 bytes that all files in the folder may have together; None: no limit. What is stored is never thrown away.

    Raises:
        ValueError: the backbone's pictures must not be kept.
        StoreError: the folder is none.
    """

    def __init__(self, backbone: AbstractBackbone, folder: Path, *, limit_gb: float | None = None) -> None:
        obstacle = backbone.vision_obstacle()
        if obstacle is not None:
            raise ValueError(f"no vision cache: {obstacle}")
        self._backbone = backbone
        # Nothing is computed again before it is used, so whatever may change the pixels on their way is named here.
        pixels = {"decoding": CHECK_NAME, **{package: version(package) for package in PIXEL_PACKAGES}}
        self._store = BlockStore(folder, identity={"kind": "vision", **pixels, **backbone.vision_identity()}, limit_gb=limit_gb)

    def fill(self, images: Sequence[ImageSource], report: Callable[[int, int], None]) -> str | None:
        """Encodes the pictures that are missing, in blocks, without gradient.

        Args:
            images: pictures; one that comes several times is encoded once.
            report: called after every block with the number of pictures present and of all.

        Returns:
            None, or why some pictures are not kept: the limit is reached, or the folder cannot be written. Then these are encoded in every
            step, and the others are read from the cache.
        """
        distinct = {image.content_hash(): image for image in images}
        keys = list(distinct)
        groups = [keys[start : start + PICTURES_PER_BLOCK] for start in range(0, len(keys), PICTURES_PER_BLOCK)]
        try:
            self._store.fill(groups, lambda asked: self._encoded([distinct[key] for key in asked]), report=report)
        except StoreError as error:
            missing = len(self._store.missing(keys))
            return f"{missing} of {len(keys)} pictures are not in the vision cache and are encoded in every step: {error}"
        return None

    def features(self, images: Sequence[ImageSource]) -> Float[Tensor, "image patch feature"] | None:
        """Features of pictures on the CPU, a line each; None unless all are stored."""
        try:
            arrays = [self._store[image.content_hash()] for image in images]
        except KeyError:
            return None
        return tensor_of(np.stack(arrays)) if arrays else None

    def _encoded(self, images: Sequence[ImageSource]) -> dict[str, Array]:
        features = self._backbone.tower_features(images).cpu()
        return {image.content_hash(): array_of(own) for image, own in zip(images, features, strict=True)}
