"""Chance for corruptions: a named stream per example, of which uniform numbers are the only ones taken from numpy.

Numpy keeps its uniform numbers the same between versions, but promises nothing for normal numbers, shuffles and choices. They
are made here from uniform ones.
"""

import numpy as np
from jaxtyping import Float, Int

from medvlm_dpo.files import sha256_of_json

CORRUPTION_VERSION = 1
"""Part of every stream's name and of every corrupted picture's hash. Any change of pixels needs a new number."""


def stream(name: str, seed: int, example_id: str) -> np.random.Generator:
    """A generator that depends on its arguments only, never on the process, on an order or on global state."""
    digest = sha256_of_json(["corruption", CORRUPTION_VERSION, name, seed, example_id])
    return np.random.Generator(np.random.PCG64(int(digest[:32], 16)))


def between(random: np.random.Generator, low: float, high: float) -> float:
    """A uniform number from [low, high)."""
    return low + (high - low) * random.random()


def whole_between(random: np.random.Generator, low: int, high: int) -> int:
    """A whole number from low to high, both included, all equally likely."""
    return low + int(random.random() * (high - low + 1))


def order(random: np.random.Generator, length: int) -> Int[np.ndarray, " length"]:
    """The numbers below `length` in random order."""
    return np.argsort(random.random(length), kind="stable")


def normals(random: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Standard normal numbers, by the transform of Box and Muller."""
    radius = np.sqrt(-2.0 * np.log(1.0 - random.random(shape)))  # 1 - u lies in (0, 1]: its logarithm is finite
    return radius * np.cos(2.0 * np.pi * random.random(shape))
