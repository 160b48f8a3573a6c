"""Random draws that are the same on every platform: a named PCG64 stream, and uniform numbers as its only use."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

GENERATOR_VERSION = 1
"""Part of every stream's name. Any change of scenes, pixels or wording needs a new number: it changes results."""

Item = TypeVar("Item")


def stream(*names: str | int) -> np.random.Generator:
    """A generator that depends on the generator version and on `names` only, never on global state."""
    text = "/".join(str(part) for part in ("phantom", GENERATOR_VERSION, *names))
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
    return np.random.Generator(np.random.PCG64(seed))


def between(random: np.random.Generator, low: float, high: float) -> float:
    """A uniform number from [low, high)."""
    return low + (high - low) * random.random()


def chance(random: np.random.Generator, probability: float) -> bool:
    """True with this probability."""
    return random.random() < probability


def pick(random: np.random.Generator, items: Sequence[Item]) -> Item:
    """One of the items, all equally likely."""
    return items[int(random.random() * len(items))]


def shuffled(random: np.random.Generator, items: Sequence[Item]) -> list[Item]:
    """The items in random order (sorted by one uniform number each: numpy's own shuffle may change between versions)."""
    keys = [random.random() for _ in items]
    return [items[position] for position in sorted(range(len(items)), key=keys.__getitem__)]
