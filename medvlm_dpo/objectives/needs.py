"""What an objective needs and how much of it, as plain values that can be stored and printed."""

from typing import Any

from medvlm_dpo.objectives.demand import Bound, Demand
from medvlm_dpo.objectives.terms import Objective
from medvlm_dpo.vocab import BASES, CORRUPT_VIEWS, views_scored_by


def needs_of(objective: Objective) -> dict[str, Any]:
    """What training with an objective needs, all lists sorted, ready for JSON.

    Args:
        objective: the built loss; terms of weight 0 are no part of it.

    Returns:
        `terms`: by name the weight. `required_answers`: own answers every example must have. `policy_with_gradient`,
        `policy_without_gradient`, `reference`: the views each scores. `reference_distributions`: the views whose whole distribution under
        the reference is needed, kept as hidden states. `corrupted_views`: the views on the corrupted image. `quantities`: what is computed
        per token. `facts`. `statistics`: by `<term>/<parameter>` the dotted name of the estimator, or the number that stands in its place.
        `measured_first`: the views the policy scores once more, without gradient, when a step has several micro-batches.
        `answers_scored`: per example how many, by the policy with gradient, by the policy without, and by the reference.
    """
    demand = objective.demand
    passes = {
        "policy_with_gradient": demand.gradient_views,
        "policy_without_gradient": demand.policy_views - demand.gradient_views,
        "reference": demand.reference_views,
    }
    return {
        "terms": {term.name: term.weight for term in sorted(objective.terms, key=lambda term: term.name)},
        "required_answers": sorted(demand.required_answers),
        **{name: sorted(views) for name, views in passes.items()},
        "reference_distributions": sorted({name.view for name in demand.tensors if BASES[name.base].reads_reference}),
        "corrupted_views": sorted(view for view in demand.views if view in CORRUPT_VIEWS),
        "quantities": sorted({name.base for name in demand.tensors}),
        "facts": sorted(demand.facts),
        "statistics": dict(sorted(_statistics(objective).items())),
        "measured_first": sorted(_measured_first(demand)),
        "answers_scored": {name: len(views) for name, views in passes.items()},
    }


def _statistics(objective: Objective) -> dict[str, str | float]:
    return {
        f"{term.name}/{parameter}": _dotted_name(source) if isinstance(source, Bound) else source
        for term in objective.terms
        for parameter, source in term.bound.statistics.items()
    }


def _dotted_name(bound: Bound) -> str:
    return f"{bound.function.__module__}.{bound.name}"


def _measured_first(demand: Demand) -> frozenset[str]:
    """What the policy must score of the whole step before the first backward pass: the input of the estimators that read it."""
    return views_scored_by("policy", demand.estimator_tensors)
