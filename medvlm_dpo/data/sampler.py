"""The stateless sampler: which examples a step sees is a function of (seed, step) and nothing else."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np


def step_examples(step: int, *, num_examples: int, batch_size: int, seed: int) -> list[int]:
    """Indices of the global batch of one optimiser step.

    The data is read as an endless stream of shuffled passes, cut into batches of exactly `batch_size`, so a batch may span two passes.

    Args:
        step: optimiser step, from 0.
        num_examples: size of the training set.
        batch_size: examples per step, over all devices.
        seed: the cell's seed.
    """
    places = range(step * batch_size, (step + 1) * batch_size)
    passes = {place // num_examples: None for place in places}
    orders = {epoch: _shuffled(num_examples, seed, epoch) for epoch in passes}
    return [int(orders[place // num_examples][place % num_examples]) for place in places]


def num_steps(*, num_examples: int, batch_size: int, max_epochs: float, max_steps: int | None) -> int:
    """Optimiser steps of a run: `max_steps` where it is set, else enough to see every example `max_epochs` times."""
    return max_steps if max_steps is not None else max(1, math.ceil(num_examples * max_epochs / batch_size))


def micro_batches(positions: Sequence[int], micro_batch_size: int) -> list[Sequence[int]]:
    """Cuts positions of the global batch into micro-batches."""
    return [positions[start : start + micro_batch_size] for start in range(0, len(positions), micro_batch_size)]


def uniform_draw(seed: int, step: int, example_id: str) -> float:
    """A number in (0, 1) that depends on these three alone: what a statistic draws with, the same on every rank and after a resume."""
    digest = hashlib.sha256(f"draw/{seed}/{step}/{example_id}".encode()).digest()
    return (int.from_bytes(digest[:6], "little") + 0.5) / 2**48  # 48 bits and a half: exact in float64, never 0 or 1


def share_of_rank(size: int, rank: int, num_ranks: int) -> range:
    """The positions of a global batch that one rank computes: contiguous, sizes differ by at most one."""
    return range(size * rank // num_ranks, size * (rank + 1) // num_ranks)


def _shuffled(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    key = hashlib.sha256(f"order/{seed}/{epoch}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "little"))).permutation(num_examples)
