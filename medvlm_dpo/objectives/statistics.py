"""Estimators: pure functions from the whole global batch to a batch statistic that an objective asks for by name.

An estimator's positional parameters are per-example tensors and facts of the same grammar as an objective's; its values carry no gradient.
It returns a scalar, one number per example, or a named tuple of these. One that asks for `previous` (a dict of 0-dim tensors, empty at the
first step) returns the pair (value, new state).
"""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from medvlm_dpo.vocab import PerExample

Scalar = Float[Tensor, ""]
State = Mapping[str, Scalar]


class PairKl(NamedTuple):
    """Two estimates of KL(policy, reference), each at least 0, nats: from the chosen and from the rejected answers of the batch."""

    chosen: Scalar
    rejected: Scalar


def mean_chosen_length(chosen_lengths: PerExample) -> Scalar:
    """Mean number of response tokens of the chosen answers of the global batch.

    Args:
        chosen_lengths: [example], response tokens, end-of-sequence included.
    """
    return chosen_lengths.mean()


def mean_pair_weight(pair_weight: PerExample) -> Scalar:
    """Mean weight of the pairs of the global batch, at least 1e-6; dividing by it keeps the scale of the loss whatever the weights.

    A batch whose weights are all 0 has loss 0, not 0/0.

    Args:
        pair_weight: [example], from the records.
    """
    return pair_weight.mean().clamp(min=1e-6)


def unmatched_kl(detached_policy_unmatched_logps: PerExample, reference_unmatched_logps: PerExample) -> Scalar:
    """KTO's z0: the mean log-ratio of answers that belong to other examples, an estimate of KL(policy, reference) in nats.

    The average is clamped at 0, never a single example. Source: https://arxiv.org/abs/2402.01306.

    Args:
        detached_policy_unmatched_logps: [example], this image and prompt with another example's answer, summed over tokens, nats.
        reference_unmatched_logps: the same under the reference.
    """
    return (detached_policy_unmatched_logps - reference_unmatched_logps).mean().clamp(min=0)


def pair_kl(
    detached_policy_chosen_logps: PerExample,
    detached_policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
) -> PairKl:
    """The reference points of KTO on pairs: the mean log-ratio of the chosen and of the rejected answers, each average clamped at 0.

    Source: the `kto_pair` loss of TRL's DPO trainer up to version 0.8.6.

    Args:
        detached_policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        detached_policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
    """
    chosen_mean = (detached_policy_chosen_logps - reference_chosen_logps).mean()
    rejected_mean = (detached_policy_rejected_logps - reference_rejected_logps).mean()
    return PairKl(chosen_mean.clamp(min=0), rejected_mean.clamp(min=0))


def mean_logratio(
    detached_policy_chosen_logps: PerExample,
    detached_policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    chosen_present: PerExample,
    rejected_present: PerExample,
    previous: State,
) -> tuple[Scalar, dict[str, Scalar]]:
    """BCO's reward shift divided by beta: the mean log-ratio of all answers seen so far, chosen and rejected pooled.

    Every answer counts once, from the first step on; this batch is counted before the mean is used. The sums are of log-ratios, not of
    rewards, so the shift follows beta. Source: https://arxiv.org/abs/2404.04656.

    Args:
        detached_policy_chosen_logps: [example], summed over response tokens, nats, 0 where absent; likewise the other three.
        detached_policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        chosen_present: [example], 1 where the example has a chosen answer, else 0. Every example has at least one answer.
        rejected_present: the same of the rejected answer.
        previous: `total` of the log-ratios and `count` of the answers of all earlier steps; empty at the first step.

    Returns:
        The mean in nats, and the new `total` and `count`.
    """
    chosen_total = (chosen_present * (detached_policy_chosen_logps - reference_chosen_logps)).sum()
    rejected_total = (rejected_present * (detached_policy_rejected_logps - reference_rejected_logps)).sum()
    total = previous.get("total", 0) + chosen_total + rejected_total
    count = previous.get("count", 0) + chosen_present.sum() + rejected_present.sum()
    return total / count, {"total": total, "count": count}
