"""Corruptions by Gaussian noise over the whole picture."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image

from medvlm_dpo.data.corruption.base import DrawnCorruption
from medvlm_dpo.data.corruption.draws import normals
from medvlm_dpo.data.corruption.settings import positive, refuse, whole
from medvlm_dpo.vocab import Example

Pixels = Float[np.ndarray, "row column channel"]
NUM_STEPS = 1000
_BAND_VALUES = 1_000_000  # a picture of 64 megapixels in double precision would fill gigabytes


@dataclass(frozen=True)
class Gaussian(DrawnCorruption):
    """Noise added to every pixel and channel, then clipped.

    Args:
        std: standard deviation in units of the full pixel range, > 0.
    """

    std: float

    def __post_init__(self) -> None:
        """Refuses wrong settings."""
        refuse(positive({"std": self.std}))

    def apply(self, picture: Image.Image, example: Example) -> Image.Image:
        """The noisy picture."""
        return noisy(picture, self.random(example), lambda pixels, noise: pixels + self.std * noise)


@dataclass(frozen=True)
class DiffusionNoise(DrawnCorruption):
    """The forward diffusion at one step: `sqrt(abar_t) x + sqrt(1 - abar_t) noise`, as POVID, VCD and CHiP corrupt pictures.

    The schedule of their released code: 1000 steps, `beta_t = sigmoid(s_t) (0.005 - 0.00001) + 0.00001` with s_t evenly from -6 to 6,
    `abar_t` the product of `1 - beta` up to step t. Their code adds the noise to the tensor that the model's preprocessing has
    normalised, whose values spread about twice as far; here x is the picture scaled to [-1, 1], and the result is clipped back to
    8 bits, so a step hides somewhat more than theirs.

    Args:
        step: t, from 0 (hardly any noise) to 999 (hardly any picture).
    """

    step: int

    def __post_init__(self) -> None:
        """Refuses wrong settings."""
        refuse(whole({"step": self.step}, 0, NUM_STEPS - 1))

    def apply(self, picture: Image.Image, example: Example) -> Image.Image:
        """The noisy picture."""
        kept = signal_share(self.step)
        signal, spread = np.sqrt(kept), np.sqrt(1.0 - kept)
        return noisy(picture, self.random(example), lambda pixels, noise: ((2.0 * pixels - 1.0) * signal + spread * noise + 1.0) / 2.0)


def signal_share(step: int) -> float:
    """The variance share of the picture at a step, `abar_t`: 0.99998 at step 0, 0.745 at 500, 0.081 at 999."""
    betas = (0.5e-2 - 1e-5) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, NUM_STEPS))) + 1e-5
    return float(np.prod(1.0 - betas[: step + 1]))


def noisy(picture: Image.Image, random: np.random.Generator, mix: Callable[[Pixels, Pixels], Pixels]) -> Image.Image:
    """A picture mixed with standard normal noise, clipped to 8 bits.

    Args:
        picture: mode RGB.
        random: where the noise comes from; a picture of one size takes the same numbers whatever it shows.
        mix: (pixels in [0, 1], noise) -> pixels.
    """
    pixels = np.asarray(picture)
    rows_per_band = max(_BAND_VALUES // (3 * picture.width), 1)
    made = np.empty_like(pixels)
    for top in range(0, picture.height, rows_per_band):
        band = pixels[top : top + rows_per_band] / 255.0
        mixed = mix(band, normals(random, band.shape))
        made[top : top + rows_per_band] = (np.clip(mixed, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return Image.fromarray(made)
