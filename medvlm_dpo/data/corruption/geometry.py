"""Corruptions that keep a part of the picture."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from medvlm_dpo.data.corruption.base import DrawnCorruption
from medvlm_dpo.data.corruption.draws import between, whole_between
from medvlm_dpo.data.corruption.settings import refuse, share
from medvlm_dpo.vocab import Example

_TRIES = 10  # as in torchvision's RandomResizedCrop, and so are the ratios of width to height
_RATIOS = (3 / 4, 4 / 3)


class _Limits(NamedTuple):
    """Least and most pixels to keep of a picture, and its width and height."""

    least: float
    most: float
    width: int
    height: int

    def holds(self, width: int, height: int) -> bool:
        """Whether a part of this size fits into the picture and keeps as much as it should."""
        return 0 < width <= self.width and 0 < height <= self.height and self.least <= width * height <= self.most


@dataclass(frozen=True)
class Crop(DrawnCorruption):
    """A random part of the picture, resized to the whole: the corruption of mDPO (https://arxiv.org/abs/2406.11839).

    The released mDPO crops the preprocessed tensor, by other draws for policy and reference; here both see the same part, cut from
    the picture itself. Parts whose whole pixels miss the range are drawn again; where no part with a width of 3/4 to 4/3 of its
    height fits (a picture that is long and thin, or tiny) one of another shape is kept, as near to the range as whole pixels allow.

    Args:
        min_area_fraction, max_area_fraction: how much of the picture is kept, in (0, 1].
    """

    min_area_fraction: float
    max_area_fraction: float

    def __post_init__(self) -> None:
        """Refuses wrong settings, all at once."""
        problems = share({"min_area_fraction": self.min_area_fraction, "max_area_fraction": self.max_area_fraction})
        if not problems and self.min_area_fraction > self.max_area_fraction:
            problems.append(
                f"corruption.min_area_fraction must be at most corruption.max_area_fraction, got {self.min_area_fraction:g} and "
                f"{self.max_area_fraction:g}"
            )
        refuse(problems)

    def apply(self, picture: Image.Image, example: Example) -> Image.Image:
        """The kept part in the picture's size, bilinear."""
        return picture.crop(self.kept_part(picture.size, example)).resize(picture.size, Image.Resampling.BILINEAR)

    def kept_part(self, size: tuple[int, int], example: Example) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of what is kept, in pixels, right and bottom exclusive.

        Args:
            size: width and height of the picture.
            example: its record.
        """
        random = self.random(example)
        area = size[0] * size[1]
        limits = _Limits(self.min_area_fraction * area, self.max_area_fraction * area, *size)
        width, height = _kept_size(limits, random)
        left, top = whole_between(random, 0, limits.width - width), whole_between(random, 0, limits.height - height)
        return left, top, left + width, top + height


def _kept_size(limits: _Limits, random: np.random.Generator) -> tuple[int, int]:
    for _ in range(_TRIES):
        area = between(random, limits.least, limits.most)
        ratio = math.exp(between(random, math.log(_RATIOS[0]), math.log(_RATIOS[1])))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if limits.holds(width, height):
            return width, height
    return _any_size(limits, random)


def _any_size(limits: _Limits, random: np.random.Generator) -> tuple[int, int]:
    """A part of another shape: as wide as the picture's shorter side allows, and at least one pixel."""
    across = max(min(limits.width, limits.height, int(limits.most)), 1)
    most = min(max(int(limits.most / across), 1), max(limits.width, limits.height))
    least = min(max(math.ceil(limits.least / across), 1), most)
    along = whole_between(random, least, most)
    return (across, along) if limits.width <= limits.height else (along, across)
