"""Estimators that sort the global batch: for every value, the one of equal rank among others. Ties keep the order of the batch."""

from typing import NamedTuple

from medvlm_dpo.vocab import PerExample


class Partners(NamedTuple):
    """For every example: the rejected log-ratio of equal rank to its chosen one, and the chosen one of equal rank to its rejected one."""

    of_chosen: PerExample
    of_rejected: PerExample


def sorted_reference_gap(
    detached_policy_chosen_logps: PerExample,
    detached_policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
) -> PerExample:
    """For every pair, the reference's gap of equal rank to the policy's; a gap is chosen minus rejected log-probability.

    Source: https://arxiv.org/abs/2406.05882.

    Args:
        detached_policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        detached_policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
    """
    gaps = detached_policy_chosen_logps - detached_policy_rejected_logps
    others = reference_chosen_logps - reference_rejected_logps
    return of_equal_rank(gaps, others)


def sorted_partners(
    detached_policy_chosen_logps: PerExample,
    detached_policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
) -> Partners:
    """Pairs the chosen with the rejected log-ratios of the batch by rank; a log-ratio is policy minus reference.

    Source: https://arxiv.org/abs/2406.05882.

    Args:
        detached_policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        detached_policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
    """
    chosen_ratio = detached_policy_chosen_logps - reference_chosen_logps
    rejected_ratio = detached_policy_rejected_logps - reference_rejected_logps
    return Partners(of_equal_rank(chosen_ratio, rejected_ratio), of_equal_rank(rejected_ratio, chosen_ratio))


def of_equal_rank(values: PerExample, others: PerExample) -> PerExample:
    """For each of the values the one of the others that has its rank: to the smallest value the smallest other."""
    ranks = values.argsort(stable=True).argsort()
    return others.sort().values[ranks]
