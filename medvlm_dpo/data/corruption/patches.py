"""Corruptions that move or hide pieces: patches in random order, patches blackened, pixels greyed."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from medvlm_dpo.data.corruption.base import DrawnCorruption
from medvlm_dpo.data.corruption.draws import order
from medvlm_dpo.data.corruption.settings import refuse, share, whole
from medvlm_dpo.vocab import Example

_MOST_PATCHES = 1000


@dataclass(frozen=True)
class PatchShuffle(DrawnCorruption):
    """Patches of equal size in random order: every detail stays, what it lies beside does not.

    The few pixels at the right and at the bottom that are left over where a side is no multiple of the number of patches stay in
    place. A side with fewer pixels than patches has as many patches as pixels.

    Args:
        patches_per_side: across and down, 2 or more.
    """

    patches_per_side: int

    def __post_init__(self) -> None:
        """Refuses wrong settings."""
        refuse(whole({"patches_per_side": self.patches_per_side}, 2, _MOST_PATCHES))

    def apply(self, picture: Image.Image, example: Example) -> Image.Image:
        """The same patches elsewhere."""
        made = np.array(picture)
        down, across = min(self.patches_per_side, picture.height), min(self.patches_per_side, picture.width)
        high, wide = picture.height // down, picture.width // across
        part = made[: down * high, : across * wide]
        patches = part.reshape(down, high, across, wide, 3).swapaxes(1, 2).reshape(down * across, high, wide, 3)
        moved = patches[order(self.random(example), len(patches))]
        part[:] = moved.reshape(down, across, high, wide, 3).swapaxes(1, 2).reshape(part.shape)
        return Image.fromarray(made)


@dataclass(frozen=True)
class PatchMask(DrawnCorruption):
    """Each patch hidden with the same probability, independently: the masks of PAPO (https://arxiv.org/abs/2507.06448).

    PAPO's official code cuts patches of 14 pixels. Here their number is fixed instead, so that the same share of a picture is one
    patch whatever its size; a side with fewer pixels than patches has as many patches as pixels.

    Args:
        patches_per_side: across and down, at least 1.
        mask_probability: of each patch, in (0, 1].
        level: grey level of hidden patches, 0 to 255.
    """

    patches_per_side: int
    mask_probability: float
    level: int

    def __post_init__(self) -> None:
        """Refuses wrong settings, all at once."""
        problems = whole({"patches_per_side": self.patches_per_side}, 1, _MOST_PATCHES) + whole({"level": self.level}, 0, 255)
        refuse(problems + share({"mask_probability": self.mask_probability}))

    def apply(self, picture: Image.Image, example: Example) -> Image.Image:
        """The picture with holes."""
        hidden = self.random(example).random((self.patches_per_side, self.patches_per_side)) < self.mask_probability
        rows, columns = (np.arange(side) * min(self.patches_per_side, side) // side for side in (picture.height, picture.width))
        made = np.array(picture)
        made[hidden[np.ix_(rows, columns)]] = self.level
        return Image.fromarray(made)


@dataclass(frozen=True)
class PixelMask(DrawnCorruption):
    """Random pixels set to the picture's mean grey level, as OPA-DPO masks pictures (https://arxiv.org/abs/2501.09695).

    The share is exact, rounded down to whole pixels. The released code takes one mean over all channels of the normalised tensor;
    here it is one mean over all channels of the picture, rounded to 8 bits.

    Args:
        masked_fraction: share of the pixels, in (0, 1].
    """

    masked_fraction: float

    def __post_init__(self) -> None:
        """Refuses wrong settings."""
        refuse(share({"masked_fraction": self.masked_fraction}))

    def apply(self, picture: Image.Image, example: Example) -> Image.Image:
        """The picture with grey pixels."""
        made = np.array(picture)
        masked = order(self.random(example), picture.width * picture.height)[: int(self.masked_fraction * picture.width * picture.height)]
        made.reshape(-1, 3)[masked] = round(float(made.mean()))
        return Image.fromarray(made)
