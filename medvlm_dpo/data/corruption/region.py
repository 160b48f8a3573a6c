"""Corruptions of the place a record points at, and the released rule that was meant to be one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from PIL import Image

from medvlm_dpo.data.corruption.base import DrawnCorruption
from medvlm_dpo.data.corruption.noise import noisy
from medvlm_dpo.data.corruption.settings import missing_policy, one_of, positive, refuse
from medvlm_dpo.errors import InputError
from medvlm_dpo.vocab import Example, ImageSource

BOXES, MASK = "lesion_boxes", "lesion_mask"  # keys of `Example.extra`: boxes, and the picture of a mask
RULES = ("flagged", "all")


@dataclass(frozen=True)
class RoiNoise(DrawnCorruption):
    """Noise added inside the lesion and nowhere else: the idea of MMedPO's noised pictures (https://arxiv.org/abs/2412.06141).

    The lesion is the union of the boxes in `extra["lesion_boxes"]` ([left, top, right, bottom] in pixels of the upright picture,
    right and bottom exclusive) and of the pixels that are not black in the picture `extra["lesion_mask"]`. An empty list of boxes
    says that there is no lesion: the picture is shown as it is. The released files of MMedPO hold no noised pictures and no code
    that makes them, so the noise itself is ours.

    Args:
        std: standard deviation of the noise in units of the full pixel range, > 0; the sum is clipped.
        missing: what to do about a record with neither boxes nor mask: `error`, or `clean`, which shows its own picture.
    """

    std: float
    missing: str

    def __post_init__(self) -> None:
        """Refuses wrong settings, all at once."""
        refuse(positive({"std": self.std}) + missing_policy(self.missing))

    def apply(self, picture: Image.Image, example: Example) -> Image.Image:
        """The picture with noise in the lesion."""
        made = np.array(picture)
        inside = region_of(example, picture.size)
        loud = noisy(picture, self.random(example), lambda pixels, noise: pixels + self.std * noise)
        made[inside] = np.asarray(loud)[inside]
        return Image.fromarray(made)

    def lacks(self, example: Example) -> str | None:
        """A record without region under `missing=error`."""
        if BOXES in example.extra or MASK in example.extra or self.missing == "clean":
            return None
        return "has neither regions nor a mask; add one of them, or set corruption.missing=clean to reuse its image"

    def stand_in(self, example: Example) -> ImageSource | None:
        """The example's own picture where nothing is marked in it."""
        return None if example.extra.get(BOXES) or MASK in example.extra else example.image

    def ingredients(self, example: Example) -> list[object]:
        """The example's id, its boxes and its mask."""
        mask = _mask_source(example)
        return [*super().ingredients(example), _boxes(example), mask and mask.content_hash()]


@dataclass(frozen=True)
class RoiNoiseReleased(DrawnCorruption):
    """The rejected picture of MMedPO's released code (train_dpo_weighted.py at HEAD), whose branches are, in its order, as follows.

    1. a record with `rejected_noised` 1: pure noise of the picture's size, mean 0, standard deviation 10 in units of the full
       pixel range, clipped. Of its pixels half are black and nearly all others full: the picture does not enter, and neither
       does any lesion;
    2. otherwise the record's `rejected_image`;
    3. otherwise the picture itself. No record of the released files has either field, so this is what those files get.

    The code's branch for `chosen_noised`, which replaces both pictures, is not rebuilt: such a record is refused.

    Args:
        std: standard deviation of the noise in units of the full pixel range, > 0.
        records: `flagged` is the rule above; `all` gives every record pure noise, as if each were flagged.
    """

    std: float
    records: str

    def __post_init__(self) -> None:
        """Refuses wrong settings, all at once."""
        refuse(positive({"std": self.std}) + one_of("records", self.records, RULES))

    def apply(self, picture: Image.Image, example: Example) -> Image.Image:
        """Noise that ignores the picture."""
        return noisy(picture, self.random(example), lambda _, noise: self.std * noise)

    def lacks(self, example: Example) -> str | None:
        """A record whose chosen picture would have to be noised as well."""
        if self._is_noised(example) or example.extra.get("chosen_noised") != 1:
            return None
        return "has chosen_noised=1, which asks for noise in place of the true image; leave the record out"

    def stand_in(self, example: Example) -> ImageSource | None:
        """The record's worse picture, or its own, where it is not flagged."""
        return None if self._is_noised(example) else example.rejected_image or example.image

    def _is_noised(self, example: Example) -> bool:
        return self.records == "all" or example.extra.get("rejected_noised") == 1


def region_of(example: Example, size: tuple[int, int]) -> Bool[np.ndarray, "row column"]:
    """True on the pixels a record marks.

    Args:
        example: a record with boxes, a mask or both; what boxes mark outside the picture is left out.
        size: width and height of its picture.

    Raises:
        InputError: the mask has another size.
    """
    inside = np.zeros((size[1], size[0]), dtype=bool)
    for left, top, right, bottom in _boxes(example):
        inside[max(math.floor(top), 0) : max(math.ceil(bottom), 0), max(math.floor(left), 0) : max(math.ceil(right), 0)] = True
    mask = _mask_source(example)
    if mask is not None:
        marked = mask.load()
        if marked.size != size:
            raise InputError(f"record {example.id}: the mask is {marked.width} x {marked.height} pixels, the image {size[0]} x {size[1]}")
        inside |= np.asarray(marked).any(axis=2)
    return inside


def _boxes(example: Example) -> Sequence[Sequence[float]]:
    return example.extra.get(BOXES) or []


def _mask_source(example: Example) -> ImageSource | None:
    return example.extra.get(MASK)
