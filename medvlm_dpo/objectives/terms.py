"""A loss as the yaml describes it: one function, or a weighted sum of terms that flattens to functions.

`build_objective` makes the `Objective` the host trains with; `problems_of` lists everything wrong with a node before any weight is read.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.calls import Statistic, cut, estimate, evaluate
from medvlm_dpo.objectives.cards import card_problems
from medvlm_dpo.objectives.demand import ANSWERS, Bound, Demand, bind_objective
from medvlm_dpo.objectives.dry_run import dry_run
from medvlm_dpo.objectives.nodes import RESERVED, as_node, hint, load_function, number_of, shown
from medvlm_dpo.objectives.ranges import range_words
from medvlm_dpo.vocab import ObjectiveOutput, PerExample


@dataclass(frozen=True)
class Term:
    """One function of a loss.

    Args:
        name: the function's name, or for a term of a sum its key, nested ones with a slash: `mdpo/dpo`.
        weight: > 0; the product of the weights on the way to it.
        bound: the function with its settings and statistics.
    """

    name: str
    weight: float
    bound: Bound

    @property
    def demand(self) -> Demand:
        """What this term asks for, estimators included."""
        return self.bound.demand


class TermOutput(NamedTuple):
    """One term's result for a micro-batch: the loss before its weight, and rewards without gradient."""

    name: str
    weight: float
    output: ObjectiveOutput


@dataclass(frozen=True)
class Objective:
    """What the host trains with.

    Args:
        terms: the functions, in yaml order, at least one.
        is_sum: whether the yaml has terms; the metrics of a lone function carry no term name.
    """

    terms: tuple[Term, ...]
    is_sum: bool

    @property
    def demand(self) -> Demand:
        """What all terms ask for together; a view two terms ask for is served once."""
        demand = Demand()
        for term in self.terms:
            demand |= term.demand
        return demand

    @property
    def estimators(self) -> Mapping[str, Bound]:
        """Every estimator by the key of its value and state, `<term>/<parameter>`."""
        return {f"{term.name}/{parameter}": estimator for term in self.terms for parameter, estimator in term.bound.estimators.items()}

    def estimate(
        self,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Tensor],
        previous_states: Mapping[str, Mapping[str, Tensor]],
    ) -> tuple[dict[str, Statistic], dict[str, dict[str, Tensor]]]:
        """The batch statistics of one optimiser step, from the whole global batch; the same on every rank.

        Args:
            tensors: `demand.estimator_tensors` by name, [global example], in order of global position.
            facts: `demand.estimator_facts` by name, [global example].
            previous_states: the states of the step before, as returned; empty at the first step.

        Returns:
            By `<term>/<parameter>`: the values (float64, detached), and the states to keep. Validation throws the states away.
        """
        statistics: dict[str, Statistic] = {}
        states: dict[str, dict[str, Tensor]] = {}
        for key, estimator in self.estimators.items():
            statistics[key], state = estimate(estimator, {**facts, **tensors}, previous_states.get(key, {}))
            if state is not None:
                states[key] = state
        return statistics, states

    def evaluate(
        self,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Tensor],
        statistics: Mapping[str, Statistic],
        global_positions: Tensor,
    ) -> list[TermOutput]:
        """The loss of every term for one micro-batch.

        Args:
            tensors: `demand.objective_tensors` by name, [example] or [example, token], float32 or float64; absent answers hold 0.
            facts: `demand.objective_facts` by name, [example].
            statistics: from `estimate`.
            global_positions: [example], the examples' places in the global batch, to which per-example statistics are cut.

        Raises:
            TypeError: if a tensor is neither float32 nor float64.
        """
        outputs: list[TermOutput] = []
        for term in self.terms:
            own = {parameter: cut(statistics[f"{term.name}/{parameter}"], global_positions) for parameter in term.bound.estimators}
            loss, rewards = evaluate(term.bound, tensors, facts, own)
            detached = {view: reward.detach() for view, reward in rewards.items()}
            outputs.append(TermOutput(term.name, term.weight, ObjectiveOutput(loss, detached)))
        return outputs


def weighted_loss(outputs: Sequence[TermOutput]) -> PerExample:
    """The total loss per example: the sum of weight x loss over the terms. The host sums it and divides by the global batch."""
    return torch.stack([output.weight * output.output.loss for output in outputs]).sum(dim=0)


def build_objective(node: Mapping[str, Any], *, batch_size: int) -> Objective:
    """Builds the objective of a loss node.

    Args:
        node: the resolved yaml: `_target_` with settings and statistics, or `terms` with `weights` and perhaps shared settings.
        batch_size: examples of the global batch.

    Raises:
        InputError: with every problem of the node.
    """
    leaves, problems = _leaves(node, "loss", batch_size)
    if problems:
        raise InputError(problems)
    is_sum = "terms" in node
    terms = tuple(Term(leaf.name if is_sum else leaf.bound.name, leaf.weight, leaf.bound) for leaf in leaves)
    return Objective(terms, is_sum=is_sum)


def problems_of(node: Mapping[str, Any], *, batch_size: int) -> list[str]:
    """Everything wrong with a loss node, one sentence each: names, types, weights, and ranges by running it on made-up values."""
    return _leaves(node, "loss", batch_size)[1] + card_problems(node, "loss")


def missing_answer_problems(
    objective: Objective, missing: Mapping[str, Sequence[str]], *, num_examples: int, unpaired_losses: Callable[[], Sequence[str]]
) -> list[str]:
    """One problem for every term that needs an answer some examples do not have.

    Args:
        objective: the built loss.
        missing: by answer (`chosen`, `rejected`) the ids of the examples without it.
        num_examples: how many examples there are.
        unpaired_losses: gives the names of the losses of the catalogue whose demand requires neither answer; asked only for a message.
    """
    return [
        f"loss term {term.name} needs a {answer} answer; {len(missing[answer])} of {num_examples} examples have none "
        f"(first: id {missing[answer][0]}). Unpaired data works with {', '.join(unpaired_losses())}"
        for term in objective.terms
        for answer in ANSWERS
        if answer in term.demand.required_answers and missing.get(answer)
    ]


def _leaves(node: Mapping[str, Any], where: str, batch_size: int) -> tuple[list[Term], list[str]]:
    """The functions of a node, nested sums flattened, and all problems. A lone function's name is empty here."""
    if "_target_" in node and "terms" in node:
        return [], [
            f"{where} has both _target_ and terms; a loss is one function or a sum (docs/objectives.md shows how to write a sum of both)"
        ]
    if "terms" in node:
        return _sum_leaves(node, where, batch_size)
    if "_target_" not in node:
        return [], [f"{where} has neither _target_ nor terms; a loss is one function or a sum"]
    function = load_function(node, where)
    if isinstance(function, str):
        return [], [function]
    bound, problems = bind_objective(function, {key: node[key] for key in node if key not in RESERVED}, where=where)
    return [Term("", 1.0, bound)], problems or dry_run(bound, batch_size=batch_size, where=where)


def _sum_leaves(node: Mapping[str, Any], where: str, batch_size: int) -> tuple[list[Term], list[str]]:
    terms, weights = as_node(node["terms"]), as_node(node.get("weights", {}))
    if not terms or weights is None:
        return [], [f"{where}.terms and {where}.weights must map the names of terms to terms and to numbers"]
    problems = _weight_problems(terms, weights, where)
    leaves: list[Term] = []
    for name, value in terms.items():
        term, weight = as_node(value), number_of(weights.get(name))
        if term is None:
            problems.append(f"{where}.terms.{name} must be a term (a node with _target_ or terms), got {shown(value)}")
        elif weight != 0:  # a term of weight 0 is not there: nothing of it is served, estimated or logged
            found, own = _leaves(term, f"{where}.terms.{name}", batch_size)
            problems += own
            factor = weight if weight is not None else 1.0
            leaves += [Term(f"{name}/{leaf.name}".rstrip("/"), factor * leaf.weight, leaf.bound) for leaf in found]
    if not leaves and not problems:
        problems.append(f"{where}.weights: every term has weight 0, so nothing would be trained")
    return leaves, problems


def _weight_problems(terms: Mapping[str, Any], weights: Mapping[str, Any], where: str) -> list[str]:
    problems = [f"{where}.weights.{name} is missing: every term needs a weight" for name in terms if name not in weights]
    for name, value in weights.items():
        number = number_of(value)
        if name not in terms:
            problems.append(f"{where}.weights.{name}: no such term; terms are {', '.join(sorted(terms))}{hint(name, terms)}")
        elif number is None:
            problems.append(f"{where}.weights.{name} must be a number, got {shown(value)}")
        elif not 0 <= number < math.inf:
            problems.append(f"{where}.weights.{name} must be {range_words('>= 0', number)}, got {value}; signs belong inside a term")
    return problems
