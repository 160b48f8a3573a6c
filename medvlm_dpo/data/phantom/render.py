"""From facts to pixels. Only +, -, *, / and comparisons of float64 arrays, so that the bytes are the same everywhere."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from medvlm_dpo.data.phantom.anatomy import IMAGE_SIDE, REGIONS, SIDES, Scene, side_sign
from medvlm_dpo.data.phantom.draws import between, chance, stream

Plane = Float[np.ndarray, "height width"]

_ROWS, _COLUMNS = (axis.astype(np.float64) for axis in np.meshgrid(np.arange(IMAGE_SIDE), np.arange(IMAGE_SIDE), indexing="ij"))


@dataclass(frozen=True)
class Look:
    """Grey values (0 black, 1 white) and disturbances of one modality.

    Args:
        air, body, rim, organ, solid: outside, soft tissue, its outer ring, the paired organ, and heart, liver or ventricles.
        grain: amplitude of the pixel noise.
        speckle: share of the noise that multiplies the signal.
        drift: amplitude of the slow brightness change.
        softness: pixels over which an edge spreads.
    """

    air: float
    body: float
    rim: float
    organ: float
    solid: float
    grain: float
    speckle: float
    drift: float
    softness: float


LOOKS: Mapping[str, Look] = {
    "radiograph": Look(air=0.06, body=0.56, rim=0.50, organ=0.30, solid=0.70, grain=0.10, speckle=0.0, drift=0.10, softness=2.2),
    "CT": Look(air=0.02, body=0.50, rim=0.80, organ=0.20, solid=0.60, grain=0.12, speckle=0.0, drift=0.03, softness=0.9),
    "MRI": Look(air=0.03, body=0.32, rim=0.62, organ=0.16, solid=0.50, grain=0.10, speckle=0.1, drift=0.22, softness=1.2),
    "ultrasound": Look(air=0.02, body=0.46, rim=0.46, organ=0.24, solid=0.58, grain=0.05, speckle=0.55, drift=0.10, softness=1.6),
}
_LESION_CONTRAST = (0.24, 0.50)
_POOR_SHARE = 0.06  # of the pictures are poor acquisitions, so that even the modality is sometimes hard to tell


def render(scene: Scene) -> UInt8[np.ndarray, "height width"]:
    """The grey picture of a scene: a pure function of the scene and of (generator version, split, index)."""
    random = stream(scene.split, scene.index, "pixels")
    look = LOOKS[scene.modality]
    plane = _tissue(scene, look, random)
    plane = _lesions(scene, look, plane, random)
    plane = _MARKS[scene.modality](scene, plane, random)
    plane = _disturb(look, plane, random)
    return np.clip(plane * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)


def _disc(x: float, y: float, half_width: float, half_height: float, softness: float) -> Plane:
    """1 inside an ellipse, 0 outside, with an edge of about `softness` pixels."""
    across, down = (_COLUMNS - x) / half_width, (_ROWS - y) / half_height
    edge = min(half_width, half_height) / (2.0 * softness)
    return np.clip((1.0 - (across * across + down * down)) * edge + 0.5, 0.0, 1.0)


def _paint(plane: Plane, mask: Plane, value: float) -> Plane:
    return plane + mask * (value - plane)


def _tissue(scene: Scene, look: Look, random: np.random.Generator) -> Plane:
    """Body outline, the paired organs, and the region's own landmark."""
    x, y = scene.centre_x, scene.centre_y
    width, height = between(random, 20.5, 22.5), between(random, 21.0, 23.0)
    plane = np.full((IMAGE_SIDE, IMAGE_SIDE), look.air)
    plane = _paint(plane, _disc(x, y, width, height, look.softness), look.rim)
    plane = _paint(plane, _disc(x, y, width - 2.0, height - 2.0, look.softness), look.body)
    region = REGIONS[scene.region]
    tone = look.organ + between(random, -0.04, 0.04)
    for side in SIDES:
        organ = _disc(x + side_sign(side) * region.offset, y, region.half_width, region.half_height, look.softness)
        plane = _paint(plane, organ, tone)
    return _LANDMARKS[scene.region](scene, look, plane, random)


def _heart(scene: Scene, look: Look, plane: Plane, random: np.random.Generator) -> Plane:
    """The heart, towards the patient's left: on the right of the picture."""
    half_width = between(random, 7.4, 8.6) if scene.heart_enlarged else between(random, 4.8, 6.0)
    mask = _disc(scene.centre_x + 3.0, scene.centre_y + 5.0, half_width, half_width * 0.9, look.softness)
    return _paint(plane, mask * 0.85, look.solid)


def _liver(scene: Scene, look: Look, plane: Plane, random: np.random.Generator) -> Plane:
    """The liver on the patient's right, above and behind the kidney, and the spine in the midline."""
    liver = _disc(scene.centre_x - 9.0, scene.centre_y - 13.0, between(random, 9.5, 11.5), 5.5, look.softness)
    spine = _disc(scene.centre_x, scene.centre_y + 2.0, 2.6, 17.0, look.softness)
    plane = _paint(plane, spine, look.solid + 0.15)
    return _paint(plane, liver * 0.5, look.solid)


def _skull(scene: Scene, look: Look, plane: Plane, random: np.random.Generator) -> Plane:
    """The skull as a bright ring and the dark ventricles beside the midline."""
    outer = _disc(scene.centre_x, scene.centre_y, 20.0, 21.5, look.softness)
    inner = _disc(scene.centre_x, scene.centre_y, 18.0, 19.5, look.softness)
    plane = _paint(plane, np.maximum(outer - inner, 0.0), look.solid + 0.25)
    half_height = between(random, 4.0, 5.5)
    for side in SIDES:
        ventricle = _disc(scene.centre_x + 2.6 * side_sign(side), scene.centre_y, 1.5, half_height, look.softness)
        plane = _paint(plane, ventricle, look.air)
    return plane


_LANDMARKS = {"chest": _heart, "abdomen": _liver, "head": _skull}


def _lesions(scene: Scene, look: Look, plane: Plane, random: np.random.Generator) -> Plane:
    contrast = between(random, *_LESION_CONTRAST)
    for lesion in scene.lesions:
        mask = _disc(lesion.x, lesion.y, lesion.radius, lesion.radius, min(look.softness, 1.2))
        plane = plane + mask * contrast
    return plane


def _ribs(scene: Scene, plane: Plane, random: np.random.Generator) -> Plane:
    """Projected ribs of a radiograph: faint bright bands that fall away from the midline."""
    fall = (_COLUMNS - scene.centre_x) / 12.0
    height = (_ROWS - fall * fall + between(random, 0.0, 7.0)) / 7.0
    inside_band = np.abs(height - np.floor(height) - 0.5) < 0.13
    return plane + between(random, 0.03, 0.08) * inside_band


def _table(_: Scene, plane: Plane, random: np.random.Generator) -> Plane:
    """The CT table: a bright line under the body."""
    row = IMAGE_SIDE - 2 - int(between(random, 0.0, 2.0))
    plane = plane.copy()
    plane[row, 6:-6] = np.maximum(plane[row, 6:-6], 0.6)
    return plane


def _ghosts(_: Scene, plane: Plane, random: np.random.Generator) -> Plane:
    """The motion ghost of a magnetic resonance image: a faint copy, shifted along the columns."""
    shift = 8 + int(between(random, 0.0, 8.0))
    return plane * 0.92 + np.roll(plane, shift, axis=0) * between(random, 0.06, 0.16)


def _sector(scene: Scene, plane: Plane, random: np.random.Generator) -> Plane:
    """The fan of an ultrasound probe, darker with depth."""
    slope = between(random, 0.85, 1.1)
    inside = np.abs(_COLUMNS - scene.centre_x) < (_ROWS + 8.0) * slope
    return np.where(inside, plane, 0.02) * (1.08 - 0.3 * _ROWS / IMAGE_SIDE)


_MARKS = {"radiograph": _ribs, "CT": _table, "MRI": _ghosts, "ultrasound": _sector}


def _smooth(plane: Plane) -> Plane:
    """The 3 x 3 box mean with repeated edges."""
    padded = np.pad(plane, 1, mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9.0


def _slow(random: np.random.Generator) -> Plane:
    """A smooth field in about [-1, 1]: a bilinear surface with curvature."""
    across, down = _COLUMNS / (IMAGE_SIDE - 1) * 2 - 1, _ROWS / (IMAGE_SIDE - 1) * 2 - 1
    a, b, c, d = (between(random, -0.5, 0.5) for _ in range(4))
    return a * across + b * down + c * across * down + d * (across * across - down * down)


def _disturb(look: Look, plane: Plane, random: np.random.Generator) -> Plane:
    """Slow drift, grain, contrast and brightness: what makes every picture unique and the task imperfect."""
    noise = random.random((IMAGE_SIDE, IMAGE_SIDE)) + random.random((IMAGE_SIDE, IMAGE_SIDE)) - 1.0
    coarse = _smooth(random.random((IMAGE_SIDE, IMAGE_SIDE)) - 0.5) * 3.0
    poor = chance(random, _POOR_SHARE)
    strength = between(random, 1.8, 3.0) if poor else between(random, 0.6, 1.5)
    if poor:
        plane = 0.3 + (plane - 0.3) * between(random, 0.3, 0.6)
    plane = plane + look.drift * _slow(random) * plane * 2.0
    plane = plane + strength * (look.grain * (0.6 * noise + 0.6 * coarse) + look.speckle * plane * (0.5 * noise + 0.5 * coarse))
    return plane * between(random, 0.85, 1.1) + between(random, -0.03, 0.05)
