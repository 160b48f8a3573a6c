"""The stateless sampler: what a step sees, and how ranks and micro-batches share it, are functions of their arguments and nothing else."""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

NumTokens = Callable[[Sequence[int]], int]  # tokens a model reads for examples at some positions of a global batch, read together

# --- which examples a step sees --------------------------------------------------------------------------------------


def step_examples(
    step: int, *, num_examples: int, batch_size: int, seed: int, images: Int[np.ndarray, " example"] | None = None
) -> list[int]:
    """Indices of the global batch of one optimiser step.

    The data is read as an endless stream of shuffled passes, cut into batches of exactly `batch_size`, so a batch may span two passes.

    Args:
        step: optimiser step, from 0.
        num_examples: size of the training set.
        batch_size: examples per step, over all devices.
        seed: the cell's seed.
        images: for every example the number of its image, from 0: a pass shuffles the images, and the examples of one stand side by side in
            it, shuffled too. None shuffles the examples one by one.
    """
    places = range(step * batch_size, (step + 1) * batch_size)
    passes = {place // num_examples: None for place in places}
    orders = {epoch: _pass(num_examples, seed, epoch, images) for epoch in passes}
    return [int(orders[place // num_examples][place % num_examples]) for place in places]


def _pass(num_examples: int, seed: int, epoch: int, images: Int[np.ndarray, " example"] | None) -> Int[np.ndarray, " place"]:
    order = _shuffled(num_examples, f"order/{seed}/{epoch}")
    if images is None:
        return order
    ranks = _shuffled(int(images.max()) + 1, f"images/{seed}/{epoch}")
    return order[ranks[images[order]].argsort(kind="stable")]


def _shuffled(number: int, key: str) -> Int[np.ndarray, " place"]:
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little"))).permutation(number)


def num_steps(*, num_examples: int, batch_size: int, max_epochs: float, max_steps: int | None) -> int:
    """Optimiser steps of a run: `max_steps` where it is set, else enough to see every example `max_epochs` times."""
    return max_steps if max_steps is not None else max(1, math.ceil(num_examples * max_epochs / batch_size))


def uniform_draw(seed: int, step: int, example_id: str) -> float:
    """A number in (0, 1) that depends on these three alone: what a statistic draws with, the same on every rank and after a resume."""
    digest = hashlib.sha256(f"draw/{seed}/{step}/{example_id}".encode()).digest()
    return (int.from_bytes(digest[:6], "little") + 0.5) / 2**48  # 48 bits and a half: exact in float64, never 0 or 1


def share(size: int, part: int, num_parts: int) -> range:
    """One of several contiguous parts whose sizes differ by at most one."""
    return range(size * part // num_parts, size * (part + 1) // num_parts)


# --- who computes them -----------------------------------------------------------------------------------------------


def balanced(groups: Sequence[Sequence[int]], num_tokens: NumTokens, num_ranks: int) -> list[list[int]]:
    """The positions that each rank computes, so that the busiest one reads few tokens; a rank may get none.

    The longest group goes to the least loaded rank (Graham 1969, https://doi.org/10.1137/0117039). Groups stay whole unless the busiest
    rank reads less when they are cut into halves, quarters and so on.

    Args:
        groups: a partition of the global batch; positions that share tokens stand together.
        num_tokens: tokens of some positions.
        num_ranks: processes that share the batch. How each cuts its share into micro-batches is its own affair and plays no part here.
    """
    sizes = [max(map(len, groups))]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    cuts = ([group[start : start + size] for group in groups for start in range(0, len(group), size)] for size in sizes)
    return min((_assigned(cut, num_tokens, num_ranks) for cut in cuts), key=lambda found: found.busiest).shares


class _Assigned(NamedTuple):
    busiest: int  # tokens of the rank with most
    shares: list[list[int]]


def _assigned(groups: Sequence[Sequence[int]], num_tokens: NumTokens, num_ranks: int) -> _Assigned:
    loads, shares = [0] * num_ranks, [list[int]() for _ in range(num_ranks)]
    for tokens, group in _longest_first(groups, num_tokens):
        rank = loads.index(min(loads))
        loads[rank] += tokens
        shares[rank] += group
    return _Assigned(max(loads), [sorted(positions) for positions in shares])


# --- in how many passes ----------------------------------------------------------------------------------------------


def micro_batches(
    groups: Sequence[Sequence[int]], num_tokens: NumTokens, *, max_tokens: int | None, max_examples: int | None
) -> list[list[int]]:
    """Cuts positions of the global batch into micro-batches: one where all fit, else few, of similar length each.

    Groups are cut where they are too large, then the longest goes first, each into the first micro-batch with room for it.

    Args:
        groups: positions that share tokens stand together; each position in one group.
        num_tokens: tokens of some positions; together they have at most what they have apart.
        max_tokens: of a micro-batch; None for no limit. An example that is longer has a micro-batch of its own.
        max_examples: of a micro-batch; None for no limit.
    """

    def fits(positions: Sequence[int]) -> bool:
        fewer = max_examples is None or len(positions) <= max_examples
        return fewer and (max_tokens is None or num_tokens(positions) <= max_tokens)

    every = sorted(position for group in groups for position in group)
    if not every or fits(every):
        return [every] if every else []
    parts = _longest_first([part for group in groups for part in _cut(group, fits)], num_tokens)
    filled: list[int] = []
    batches: list[list[int]] = []
    for tokens, part in parts:
        room = (
            place
            for place, own in enumerate(batches)
            if (max_tokens is None or filled[place] + tokens <= max_tokens)
            and (max_examples is None or len(own) + len(part) <= max_examples)
        )
        place = next(room, len(batches))
        if place == len(batches):
            filled.append(0)
            batches.append([])
        filled[place] += tokens
        batches[place] += part
    return [sorted(positions) for positions in batches]


def _cut(group: Sequence[int], fits: Callable[[Sequence[int]], bool]) -> list[list[int]]:
    """Runs of a group that fit, as long as they can be."""
    parts = [[group[0]]]
    for position in group[1:]:
        if fits([*parts[-1], position]):
            parts[-1].append(position)
        else:
            parts.append([position])
    return parts


def _longest_first(groups: Sequence[Sequence[int]], num_tokens: NumTokens) -> list[tuple[int, Sequence[int]]]:
    return sorted(((num_tokens(group), group) for group in groups), key=lambda measured: -measured[0])
