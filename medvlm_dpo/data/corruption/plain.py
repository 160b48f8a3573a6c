"""Corruptions without chance: one grey level, a blur, and the record's own worse picture."""

from dataclasses import dataclass

from PIL import Image, ImageFilter

from medvlm_dpo.data.corruption.base import Corruption
from medvlm_dpo.data.corruption.settings import missing_policy, positive, refuse, whole
from medvlm_dpo.vocab import Example, ImageSource


@dataclass(frozen=True)
class Blank(Corruption):
    """One grey level everywhere: no picture at all, as V-DPO compares with (https://arxiv.org/abs/2411.02712).

    Args:
        level: grey level, 0 (black) to 255 (white).
    """

    level: int

    def __post_init__(self) -> None:
        """Refuses wrong settings."""
        refuse(whole({"level": self.level}, 0, 255))

    def apply(self, picture: Image.Image, example: Example) -> Image.Image:
        """A picture of one colour."""
        del example
        return Image.new("RGB", picture.size, (self.level, self.level, self.level))


@dataclass(frozen=True)
class Blur(Corruption):
    """Gaussian blur: coarse shapes stay, small findings go.

    Args:
        radius_fraction: standard deviation of the blur as a share of the picture's shorter side, in (0, 1].
    """

    radius_fraction: float

    def __post_init__(self) -> None:
        """Refuses wrong settings."""
        problems = positive({"radius_fraction": self.radius_fraction})
        if self.radius_fraction > 1:
            problems.append(f"corruption.radius_fraction must be at most 1, got {self.radius_fraction:g}")
        refuse(problems)

    def apply(self, picture: Image.Image, example: Example) -> Image.Image:
        """The blurred picture."""
        del example
        return picture.filter(ImageFilter.GaussianBlur(self.radius_fraction * min(picture.size)))


@dataclass(frozen=True)
class File(Corruption):
    """The record's own `rejected_image`, for example a retrieved similar picture (Re-Align, https://arxiv.org/abs/2502.13146).

    Args:
        missing: what to do about a record without one: `error`, or `clean`, which shows the example's own picture.
    """

    missing: str

    def __post_init__(self) -> None:
        """Refuses wrong settings."""
        refuse(missing_policy(self.missing))

    def apply(self, picture: Image.Image, example: Example) -> Image.Image:
        """The record's worse picture, in its own size."""
        return picture if example.rejected_image is None else example.rejected_image.load()

    def lacks(self, example: Example) -> str | None:
        """A record without `rejected_image` under `missing=error`."""
        if example.rejected_image is not None or self.missing == "clean":
            return None
        return "has no rejected_image; set corruption.missing=clean to reuse its image"

    def stand_in(self, example: Example) -> ImageSource:
        """The picture itself: there is nothing to make."""
        return example.image if example.rejected_image is None else example.rejected_image
