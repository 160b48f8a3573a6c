"""Sums and counts of the metrics, so that means are exact over micro-batches and ranks of any size."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from medvlm_dpo import metrics
from medvlm_dpo.objectives.demand import answer_of
from medvlm_dpo.objectives.terms import Objective, TermOutput, weighted_loss

_RIVALS = (
    ("rejected", metrics.REWARD_ACCURACY, metrics.REWARD_MARGIN),
    ("chosen_corrupt", metrics.IMAGE_ACCURACY, metrics.IMAGE_MARGIN),
    ("rejected_corrupt", metrics.MIXED_ACCURACY, metrics.MIXED_MARGIN),
)


class Total(NamedTuple):
    """A metric's sum over the examples that count, and how many those are: two 0-dim float64 tensors, without gradient."""

    total: Tensor
    num_examples: Tensor


def add_totals(parts: Iterable[Mapping[str, Total]]) -> dict[str, Total]:
    """The totals of several micro-batches as one."""
    added: dict[str, Total] = {}
    for part in parts:
        for name, own in part.items():
            before = added.get(name)
            added[name] = own if before is None else Total(before.total + own.total, before.num_examples + own.num_examples)
    return added


def on_cpu(totals: Mapping[str, Total]) -> dict[str, Total]:
    """The same totals where processes can exchange them."""
    return {name: Total(own.total.cpu(), own.num_examples.cpu()) for name, own in totals.items()}


def means_of(totals: Mapping[str, Total]) -> dict[str, float]:
    """The means; a metric for which no example counted has none and is left out."""
    return {name: (total / count).item() for name, (total, count) in totals.items() if count.item() > 0}


def masked_total(values: Tensor, views: Iterable[str], facts: Mapping[str, Tensor]) -> Total:
    """Sum and count over the examples that have every answer the views speak of.

    Args:
        values: [example].
        views: names of views or facts.
        facts: `chosen_present` and `rejected_present` where examples may lack an answer; without them all are present.
    """
    present = torch.ones_like(values, dtype=torch.float64)
    for answer in sorted({answer for view in views if (answer := answer_of(view))}):
        if (fact := facts.get(f"{answer}_present")) is not None:
            present = present * fact.to(present)
    return Total((values.detach().double() * present).sum(), present.sum())


def share_above(values: Tensor, others: Tensor, *, tie: float = 0.0) -> Tensor:
    """1 where a value is above the other, 0 where it is below, one half at a tie.

    Args:
        values: [example].
        others: [example], what each is compared with.
        tie: the largest difference that counts as none, in the values' unit.
    """
    difference = values - others
    return (1 + torch.sign(difference) * (difference.abs() > tie)) / 2


def loss_totals(objective: Objective, outputs: list[TermOutput], facts: Mapping[str, Tensor]) -> dict[str, Total]:
    """Losses and rewards of one micro-batch by metric name (without split).

    A sum reports every term under its name, and under the headline names the first term in yaml order that has both rewards.

    Args:
        objective: the loss.
        outputs: what its `evaluate` returned.
        facts: as for `masked_total`.
    """
    totals = {metrics.LOSS: masked_total(weighted_loss(outputs), (), facts)}
    for name, _, output in outputs:
        own = {metrics.reward_of(view): masked_total(reward, (view,), facts) for view, reward in output.rewards.items()}
        if objective.is_sum:
            own = {metrics.of_term(name, key): value for key, value in own.items()}
            own[metrics.of_term(name, metrics.LOSS)] = masked_total(output.loss, (), facts)
        totals |= own
    for rival, accuracy, margin in _RIVALS:
        both = next((output.output.rewards for output in outputs if {"chosen", rival} <= output.output.rewards.keys()), None)
        if both is not None:
            totals[accuracy] = masked_total(share_above(both["chosen"], both[rival]), ("chosen", rival), facts)
            totals[margin] = masked_total(both["chosen"] - both[rival], ("chosen", rival), facts)
            if rival == "rejected":
                totals |= {metrics.reward_of(view): masked_total(both[view], (view,), facts) for view in ("chosen", rival)}
    return totals
