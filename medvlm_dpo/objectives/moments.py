"""Estimators of the mean and the spread of preference gaps, averaged over the steps so far.

The averages start at 0 without correction, as published: after the first step, with decay .9, both are a tenth of the batch's own.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from medvlm_dpo.objectives.ranges import below, not_negative, refuse
from medvlm_dpo.objectives.statistics import Scalar, State
from medvlm_dpo.vocab import PerExample

_LEAST_STD = 1e-6  # with a fresh adapter every gap is 0, and so is their spread


class GapMoments(NamedTuple):
    """Running mean and running standard deviation (at least 1e-6) of the gaps, in the gaps' unit."""

    mean: Scalar
    std: Scalar


class FilteredGaps(NamedTuple):
    """Running mean of all gaps, mean of the kept ones of this batch (nats), and per example 0 or the batch size over the number kept."""

    mean: Scalar
    kept_mean: Scalar
    keep_scale: PerExample


def mean_gap_moments(
    detached_policy_chosen_mean_logps: PerExample,
    detached_policy_rejected_mean_logps: PerExample,
    reference_chosen_mean_logps: PerExample,
    reference_rejected_mean_logps: PerExample,
    previous: State,
    *,
    decay: float,
) -> tuple[GapMoments, dict[str, Scalar]]:
    """Running moments of `(chosen log-ratio) - (rejected log-ratio)`, the log-ratios averaged over tokens.

    Source: https://arxiv.org/abs/2410.10148, official code.

    Args:
        detached_policy_chosen_mean_logps: [example], mean over response tokens, nats; likewise the other three.
        detached_policy_rejected_mean_logps: of the rejected answer.
        reference_chosen_mean_logps: of the chosen answer under the reference.
        reference_rejected_mean_logps: of the rejected answer under the reference.
        previous: `mean` and `std` after the step before; empty at the first step.
        decay: share of the old average, in [0, 1).

    Returns:
        The moments with this batch included, and the new `mean` and `std`.

    Raises:
        InputError: if decay is out of its range.
        ValueError: if there are fewer than two pairs.
    """
    refuse(not_negative({"decay": decay}) + below({"decay": decay}, 1))
    chosen_ratio = detached_policy_chosen_mean_logps - reference_chosen_mean_logps
    rejected_ratio = detached_policy_rejected_mean_logps - reference_rejected_mean_logps
    return _running(chosen_ratio - rejected_ratio, previous, decay)


def filtered_gap_moments(  # noqa: PLR0913 - every tensor is a parameter: the signature is the contract
    detached_policy_chosen_logps: PerExample,
    detached_policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    uniform_draw: PerExample,
    previous: State,
    *,
    decay: float,
    drop_fraction: float,
) -> tuple[FilteredGaps, dict[str, Scalar]]:
    """Running moments of `(chosen log-ratio) - (rejected log-ratio)`, and a draw of pairs whose gap is near the running mean.

    `floor(batch * (1 - drop_fraction))` pairs are kept, drawn without replacement with probability proportional to
    `exp(-((gap - mean) / std) ** 2 / 2)`. The same `uniform_draw` keeps the same pairs. Source: https://arxiv.org/abs/2407.08639,
    official code, which draws from the generator of each rank.

    Args:
        detached_policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        detached_policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        uniform_draw: [example], in (0, 1).
        previous: `mean` and `std` after the step before; empty at the first step.
        decay: share of the old average, in [0, 1).
        drop_fraction: share of the pairs that is left out, in [0, 1).

    Returns:
        The running mean with this batch included, mean and mask of the kept pairs, and the new `mean` and `std`.

    Raises:
        InputError: if a setting is out of its range.
        ValueError: if there are fewer than two pairs, or none is kept.
    """
    shares = {"decay": decay, "drop_fraction": drop_fraction}
    refuse(not_negative(shares) + below(shares, 1))
    chosen_ratio = detached_policy_chosen_logps - reference_chosen_logps
    rejected_ratio = detached_policy_rejected_logps - reference_rejected_logps
    gaps = chosen_ratio - rejected_ratio
    (mean, std), state = _running(gaps, previous, decay)
    num_kept = _num_kept(len(gaps), drop_fraction)
    # Gumbel top-k: the largest of log-weight plus Gumbel noise are a draw without replacement
    keys = -(((gaps - mean) / std) ** 2) / 2 - torch.log(-torch.log(uniform_draw))
    places = keys.argsort(descending=True, stable=True)[:num_kept]
    keep_scale = torch.zeros_like(gaps).index_fill(0, places, len(gaps) / num_kept)
    return FilteredGaps(mean, gaps[places].mean(), keep_scale), state


def _running(gaps: Tensor, previous: State, decay: float) -> tuple[GapMoments, dict[str, Scalar]]:
    """The batch's moments mixed into the running ones; the state keeps the spread as it is, without its lower bound."""
    if len(gaps) < 2:
        raise ValueError(f"needs a global batch of at least 2 pairs, got {len(gaps)}")
    start = gaps.new_zeros(())
    mean = previous.get("mean", start).lerp(gaps.mean(), 1 - decay)
    std = previous.get("std", start).lerp(gaps.std(), 1 - decay)
    return GapMoments(mean, std.clamp(min=_LEAST_STD)), {"mean": mean, "std": std}


def _num_kept(num_pairs: int, drop_fraction: float) -> int:
    num_kept = math.floor(num_pairs * (1 - drop_fraction) + 1e-9)  # 10 * (1 - .9) is a little less than 1
    if not num_kept:
        raise ValueError(
            f"loss.drop_fraction {drop_fraction:g} leaves none of the {num_pairs} pairs of a global batch; lower it or raise the batch size"
        )
    return num_kept
