"""The facts of one phantom picture: modality, region, heart size, lesions. Pixels come later and follow the facts.

Pictures use the radiological convention: the patient faces the viewer, so the patient's right is on the left of the picture.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medvlm_dpo.data.phantom.draws import between, chance, pick, shuffled, stream

IMAGE_SIDE = 48
SPLITS = ("pretrain", "train", "validation", "test", "reserve")
MODALITIES = ("radiograph", "CT", "MRI", "ultrasound")
SIDES = ("right", "left")
ZONES = ("upper", "middle", "lower")
SIZES = ("small", "medium", "large")
ERROR_TYPES = ("modality", "anatomy", "laterality", "location", "presence", "size", "count")

RADII: Mapping[str, tuple[float, float]] = {"small": (1.5, 2.0), "medium": (2.6, 3.1), "large": (3.8, 4.5)}
COUNT_SHARES = (0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 3, 3)


@dataclass(frozen=True)
class Region:
    """A body region with one paired organ that may hold lesions. Lengths are in pixels.

    Args:
        organ, organs: the words for one and for both.
        offset: distance of each organ's centre from the midline.
        half_width, half_height: semi-axes of each organ.
        zone_step: distance between the centres of neighbouring zones.
    """

    organ: str
    organs: str
    offset: float
    half_width: float
    half_height: float
    zone_step: float


REGIONS: Mapping[str, Region] = {
    "chest": Region("lung", "lungs", 10.5, 6.8, 14.5, 9.0),
    "abdomen": Region("kidney", "kidneys", 11.0, 6.2, 13.0, 8.2),
    "head": Region("hemisphere", "hemispheres", 8.8, 7.8, 15.5, 9.2),
}


@dataclass(frozen=True)
class Lesion:
    """One lesion: where it is in words, and its disc in pixels of the finished picture."""

    side: str
    zone: str
    x: float
    y: float
    radius: float

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels, right and bottom exclusive, inside the picture."""
        low_x, low_y = int(self.x - self.radius), int(self.y - self.radius)
        high_x, high_y = int(self.x + self.radius) + 2, int(self.y + self.radius) + 2
        return max(low_x, 0), max(low_y, 0), min(high_x, IMAGE_SIDE), min(high_y, IMAGE_SIDE)


@dataclass(frozen=True)
class Scene:
    """Everything that is true of image `index` of `split`.

    Args:
        region: a key of `REGIONS`.
        heart_enlarged: None where the region shows no heart.
        size: the size all lesions share; None without lesions.
        centre_x, centre_y: the midline and the middle of the body in pixels.
    """

    split: str
    index: int
    modality: str
    region: str
    heart_enlarged: bool | None
    size: str | None
    lesions: tuple[Lesion, ...]
    centre_x: float
    centre_y: float

    @property
    def side(self) -> str | None:
        """The side that holds every lesion, `both` where the two sides share them, None without lesions."""
        sides = {lesion.side for lesion in self.lesions}
        return "both" if len(sides) > 1 else next(iter(sides), None)


def scene_of(split: str, index: int) -> Scene:
    """The facts of one picture: a pure function of (generator version, split, index)."""
    random = stream(split, index, "scene")
    modality, region = pick(random, MODALITIES), pick(random, tuple(REGIONS))
    enlarged = chance(random, 0.5)
    size = pick(random, SIZES)
    centre_x = (IMAGE_SIDE - 1) / 2 + between(random, -1.2, 1.2)
    centre_y = (IMAGE_SIDE - 1) / 2 + between(random, -1.2, 1.2)
    lesions = tuple(_lesion(random, REGIONS[region], side, zone, size, (centre_x, centre_y)) for side, zone in _places(random))
    return Scene(
        split=split,
        index=index,
        modality=modality,
        region=region,
        heart_enlarged=enlarged if region == "chest" else None,
        size=size if lesions else None,
        lesions=lesions,
        centre_x=centre_x,
        centre_y=centre_y,
    )


def side_sign(side: str) -> int:
    """The direction of a patient's side along the picture's x axis: right is -1, left is +1."""
    return 1 if side == "left" else -1


def _places(random: np.random.Generator) -> list[tuple[str, str]]:
    """Distinct (side, zone) places, so that lesions never overlap and can be counted."""
    count = pick(random, COUNT_SHARES)
    one_sided = chance(random, 0.65)
    sides = (pick(random, SIDES),) if one_sided else SIDES
    return shuffled(random, [(side, zone) for side in sides for zone in ZONES])[:count]


def _lesion(random: np.random.Generator, region: Region, side: str, zone: str, size: str, centre: tuple[float, float]) -> Lesion:
    radius = between(random, *RADII[size])
    slack = max(region.half_width - 1.0 - radius, 0.0)
    # Upper and lower lesions move towards the midline of their organ, which narrows there.
    spread = slack * (0.35 if zone != "middle" else 0.8)
    x = centre[0] + side_sign(side) * region.offset + between(random, -spread, spread)
    y = centre[1] + (ZONES.index(zone) - 1) * region.zone_step + between(random, -1.2, 1.2)
    return Lesion(side, zone, x, y, radius)
