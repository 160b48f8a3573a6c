"""Diagnostics that mean the same for every loss, as functions of the objectives' grammar.

They stand here and not in `medvlm_dpo.metrics`, which holds their names, because that module must not import torch. Each returns one value
per example without gradient. "Change" and "gain" are against the reference; where that is the starting policy, they are against the start.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from medvlm_dpo import metrics
from medvlm_dpo.objectives.calls import serve
from medvlm_dpo.objectives.demand import Bound, Demand, answer_of, bind_estimator
from medvlm_dpo.objectives.totals import Total, masked_total, share_above
from medvlm_dpo.vocab import CLEAN_VIEWS, PerExample, passes_of

ROUNDING_NATS = 1e-5  # of summed float32 log-probabilities


def preference_accuracy(detached_policy_chosen_mean_logps: PerExample, detached_policy_rejected_mean_logps: PerExample) -> PerExample:
    """1 where the policy gives the chosen answer the higher mean log-probability per token, 1/2 at a tie, else 0."""
    return share_above(detached_policy_chosen_mean_logps, detached_policy_rejected_mean_logps)


def preference_gain(
    detached_policy_chosen_logps: PerExample,
    detached_policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
) -> PerExample:
    """1 where the chosen answer's log-ratio to the reference is above the rejected one's, 1/2 at a tie, else 0; sums, no beta.

    Differences of rounding (1e-5 nats) count as ties: before the first step all are, however the batch is cut.
    """
    chosen_ratio = detached_policy_chosen_logps - reference_chosen_logps
    return share_above(chosen_ratio, detached_policy_rejected_logps - reference_rejected_logps, tie=ROUNDING_NATS)


def preference_margin(
    detached_policy_chosen_logps: PerExample,
    detached_policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
) -> PerExample:
    """Chosen minus rejected log-ratio to the reference, sums over response tokens, nats, no beta."""
    return (detached_policy_chosen_logps - reference_chosen_logps) - (detached_policy_rejected_logps - reference_rejected_logps)


def chosen_logps_change(detached_policy_chosen_logps: PerExample, reference_chosen_logps: PerExample) -> PerExample:
    """Log-ratio of the chosen answer to the reference, sum over response tokens, nats."""
    return detached_policy_chosen_logps - reference_chosen_logps


def rejected_logps_change(detached_policy_rejected_logps: PerExample, reference_rejected_logps: PerExample) -> PerExample:
    """Log-ratio of the rejected answer to the reference, sum over response tokens, nats."""
    return detached_policy_rejected_logps - reference_rejected_logps


def image_gap(detached_policy_chosen_logps: PerExample, detached_policy_chosen_corrupt_logps: PerExample) -> PerExample:
    """Log-probability of the chosen answer on the true image minus that on the corrupted one, sums over response tokens, nats."""
    return detached_policy_chosen_logps - detached_policy_chosen_corrupt_logps


def chosen_length(chosen_lengths: PerExample) -> PerExample:
    """Response tokens of the chosen answer, end-of-sequence included."""
    return chosen_lengths


def rejected_length(rejected_lengths: PerExample) -> PerExample:
    """Response tokens of the rejected answer, end-of-sequence included."""
    return rejected_lengths


FUNCTIONS: Mapping[str, Callable[..., PerExample]] = {
    metrics.PREFERENCE_ACCURACY: preference_accuracy,
    metrics.PREFERENCE_GAIN: preference_gain,
    metrics.PREFERENCE_MARGIN: preference_margin,
    metrics.CHOSEN_LOGPS_CHANGE: chosen_logps_change,
    metrics.REJECTED_LOGPS_CHANGE: rejected_logps_change,
    metrics.IMAGE_GAP: image_gap,
    metrics.CHOSEN_LENGTH: chosen_length,
    metrics.REJECTED_LENGTH: rejected_length,
}


@dataclass(frozen=True)
class Diagnostics:
    """Some diagnostics and what they ask for.

    Args:
        functions: by metric name.
        demand: their tensors and facts, all detached; the host serves it beside the objective's.
    """

    functions: Mapping[str, Bound]
    demand: Demand

    def totals(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Tensor]) -> dict[str, Total]:
        """Sums and counts for one micro-batch by metric name (without split). An example counts where it has the answers spoken of.

        Args:
            tensors: `demand.tensors` by name, [example]; a `policy_` tensor serves for its detached twin.
            facts: `demand.facts` by name, [example].
        """
        served = {**{name: fact.double() for name, fact in facts.items()}, **tensors}
        return {
            name: masked_total(bound.function(*(serve(argument, served) for argument in bound.arguments)), _spoken_of(bound), facts)
            for name, bound in self.functions.items()
        }


def validation_diagnostics(demand: Demand) -> Diagnostics:
    """What validation reports: everything for every loss alike; only a corrupted image must be asked for by the loss itself.

    Args:
        demand: the objective's.
    """
    everything = all_diagnostics().functions
    views = demand.views | set(CLEAN_VIEWS)
    return _collect({name: bound for name, bound in everything.items() if bound.demand.views <= views})


def all_diagnostics() -> Diagnostics:
    """Every diagnostic there is."""
    return _collect({name: bind_estimator(function, {}, where=name)[0] for name, function in FUNCTIONS.items()})


def free_diagnostics(demand: Demand) -> Diagnostics:
    """The diagnostics whose views the demand serves anyway, by the same model: they cost another sum of values that exist.

    Args:
        demand: the objective's, from which training reports what it can without another forward pass.
    """
    columns = {column for name in demand.tensors for column in passes_of(name)}
    views = {view for _, view in columns}
    free = {
        name: bound
        for name, bound in all_diagnostics().functions.items()
        if {column for asked in bound.demand.tensors for column in passes_of(asked)} <= columns
        and {answer_of(fact) for fact in bound.demand.facts} <= views
    }
    return _collect(free)


def margins_and_lengths(tensors: Mapping[str, Tensor], facts: Mapping[str, Tensor]) -> Float[Tensor, "pair 2"]:
    """For every complete pair its preference margin (nats) and chosen minus rejected length (response tokens).

    Args:
        tensors: what the validation's diagnostics ask for.
        facts: lengths and presence.
    """
    margin = _gaps("detached_policy", tensors) - _gaps("reference", tensors)
    difference = facts["chosen_lengths"].to(margin) - facts["rejected_lengths"].to(margin)
    complete = (facts["chosen_present"] > 0) & (facts["rejected_present"] > 0)
    return torch.stack([margin, difference], dim=1)[complete].cpu()


def _gaps(model: str, tensors: Mapping[str, Tensor]) -> Tensor:
    return serve(f"{model}_chosen_logps", tensors).double() - serve(f"{model}_rejected_logps", tensors).double()


def squared_correlation(pairs: Float[Tensor, "pair 2"]) -> float | None:
    """Pearson's r squared of the two columns; None where one of them does not vary or there are fewer than three pairs."""
    if len(pairs) < 3:
        return None
    first, second = (pairs - pairs.mean(dim=0)).unbind(dim=1)
    scale = first.square().sum() * second.square().sum()
    return float((first * second).sum().square() / scale) if scale > 0 else None


def _collect(functions: Mapping[str, Bound]) -> Diagnostics:
    tensors = frozenset(name for bound in functions.values() for name in bound.demand.tensors)
    facts = frozenset(name for bound in functions.values() for name in bound.demand.facts)
    return Diagnostics(functions, Demand(objective_tensors=tensors, objective_facts=facts))


def _spoken_of(bound: Bound) -> set[str]:
    return {name.view for name in bound.demand.tensors} | set(bound.demand.facts)
