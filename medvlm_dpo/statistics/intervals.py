"""Intervals and p-values for an estimate whose variance has several parts, each known from few observations."""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

from scipy import special  # pyright: ignore[reportMissingTypeStubs]

SMALLEST_P = 1e-30
BISECTIONS = 60  # of an interval of log p that is 70 wide: far below double precision


class Part(NamedTuple):
    """One source of variance of an estimate.

    Args:
        variance: the variance it adds to the estimate.
        degrees_of_freedom: how well that variance is known.
    """

    variance: float
    degrees_of_freedom: int


class Spread(NamedTuple):
    """Mean and spread over seeds.

    Args:
        mean: plain mean.
        sd: sample standard deviation (n - 1 in the denominator), None for a single seed.
        num_seeds: how many values.
    """

    mean: float
    sd: float | None
    num_seeds: int


def mean_and_spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of one number per seed. The spread is a description, not an interval."""
    if not values:
        raise ValueError("mean_and_spread needs at least one value")
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Spread(mean, None, 1)
    return Spread(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1)), count)


def half_width(parts: Sequence[Part], alpha: float = 0.05) -> float:
    """Half the width of the (1 - alpha) interval: the root of the sum of t(1 - alpha/2; df)^2 times variance over the parts.

    For normal data it covers at least 1 - alpha, whatever the split of the variance over the parts: coverage given the estimated
    variances is a concave function of them, so it is no less than the weighted mean of what each part has alone, 1 - alpha.
    """
    return math.sqrt(math.fsum(t_upper(alpha / 2, part.degrees_of_freedom) ** 2 * part.variance for part in parts))


def p_value(difference: float, parts: Sequence[Part]) -> float:
    """The alpha at which the interval just touches 0, from 1e-30 to 1; below alpha exactly when that interval excludes 0."""
    size = abs(difference)
    if size == 0:
        return 1.0
    if half_width(parts, SMALLEST_P) <= size:
        return SMALLEST_P
    low, high = math.log(SMALLEST_P), 0.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if half_width(parts, math.exp(middle)) > size else (low, middle)
    return math.exp((low + high) / 2)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment over one family.

    Args:
        p_values: None for a planned comparison that could not be made: it stays in the family and counts as 1.

    Returns:
        Adjusted p-values in the given order, None where None was given.
    """
    order = sorted(range(len(p_values)), key=lambda place: _or_one(p_values[place]))
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * _or_one(p_values[place])))
        adjusted[place] = None if p_values[place] is None else largest
    return adjusted


def t_upper(tail: float, degrees_of_freedom: int) -> float:
    """The value that Student's t exceeds with probability `tail`; taken from the tail, so that tiny ones stay exact."""
    return -float(cast(float, special.stdtrit(degrees_of_freedom, tail)))  # pyright: ignore[reportUnknownMemberType]


def _or_one(p: float | None) -> float:
    return 1.0 if p is None else p
