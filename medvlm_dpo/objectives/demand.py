"""What an objective asks for, read from its signature.

Positional parameters are tensors named by the grammar of `medvlm_dpo.vocab`, facts of the example, or batch statistics that the yaml
fills with an estimator or a number. Keyword-only parameters are settings of the yaml. Nothing else is allowed, so the signature is checked
whole before any weight is read.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.nodes import RESERVED, as_node, hint, load_function, number_of, shown, type_problem
from medvlm_dpo.vocab import FACTS, TENSOR_NAMES, TOKEN_FACTS, PerExample, TensorName, views_scored_by

ANSWERS = ("chosen", "rejected")
PREVIOUS = "previous"


def answer_of(name: str) -> str | None:
    """The own answer of the example that a view or fact speaks of: `chosen_corrupt` of `chosen`, `unmatched` of none."""
    head = name.partition("_")[0]
    return head if head in ANSWERS else None


@dataclass(frozen=True)
class Demand:
    """What must be served to an objective: a value object, united with `|`.

    Args:
        objective_tensors: what the losses ask for. Only the `policy_` ones carry gradient.
        estimator_tensors: what the estimators ask for over the whole global batch, all detached: `detached_policy_` or `reference_`.
        objective_facts: facts the losses ask for.
        estimator_facts: facts the estimators ask for.
        required_answers: own answers (`chosen`, `rejected`) that every example must have: some function does not ask for their presence.
    """

    objective_tensors: frozenset[TensorName] = frozenset()
    estimator_tensors: frozenset[TensorName] = frozenset()
    objective_facts: frozenset[str] = frozenset()
    estimator_facts: frozenset[str] = frozenset()
    required_answers: frozenset[str] = frozenset()

    def __or__(self, other: "Demand") -> "Demand":
        return Demand(
            self.objective_tensors | other.objective_tensors,
            self.estimator_tensors | other.estimator_tensors,
            self.objective_facts | other.objective_facts,
            self.estimator_facts | other.estimator_facts,
            self.required_answers | other.required_answers,
        )

    @property
    def tensors(self) -> frozenset[TensorName]:
        """Everything asked for, by losses and estimators."""
        return self.objective_tensors | self.estimator_tensors

    @property
    def facts(self) -> frozenset[str]:
        """Every fact asked for, by losses and estimators."""
        return self.objective_facts | self.estimator_facts

    @property
    def gradient_tensors(self) -> frozenset[TensorName]:
        """The tensors that carry gradient."""
        return frozenset(name for name in self.objective_tensors if name.model == "policy")

    @property
    def views(self) -> frozenset[str]:
        """Every view that must be scored, by whichever model."""
        return self.policy_views | self.reference_views

    @property
    def gradient_views(self) -> frozenset[str]:
        """The views whose policy pass carries gradient."""
        return frozenset(name.view for name in self.gradient_tensors)

    @property
    def policy_views(self) -> frozenset[str]:
        """The views the policy scores, with gradient or without."""
        return views_scored_by("policy", self.tensors)

    @property
    def reference_views(self) -> frozenset[str]:
        """The views the reference scores."""
        return views_scored_by("reference", self.tensors)

    @property
    def needs_reference(self) -> bool:
        """Whether any reference value is asked for."""
        return bool(self.reference_views)

    @property
    def measures_policy(self) -> bool:
        """Whether a statistic depends on the policy, so that several micro-batches need a pass without gradient first."""
        return any(name.model == "detached_policy" for name in self.estimator_tensors)


@dataclass(frozen=True)
class Bound:
    """A function of the contract together with what the yaml gives it.

    Args:
        function: an objective, estimator or diagnostic.
        arguments: its positional parameters in order.
        settings: its keyword-only arguments.
        statistics: for an objective, what fills each batch statistic: an estimator or a number.
        demand: what must be served to it and its estimators.
    """

    function: Callable[..., Any]
    arguments: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    statistics: Mapping[str, "Bound | float"] = field(default_factory=dict[str, "Bound | float"])
    demand: Demand = field(default_factory=Demand)

    @property
    def name(self) -> str:
        """The function's name, for messages."""
        return self.function.__name__

    @property
    def estimators(self) -> Mapping[str, "Bound"]:
        """The statistics that are estimated rather than fixed."""
        return {parameter: source for parameter, source in self.statistics.items() if isinstance(source, Bound)}


def demand_of(function: Callable[..., Any], settings: Mapping[str, Any], *, where: str = "loss") -> Demand:
    """What an objective asks for.

    Args:
        function: the objective.
        settings: its yaml node without `_target_`: numbers for the settings, estimator nodes or numbers for batch statistics.
        where: the node's place in the configuration, for messages.

    Raises:
        InputError: with every problem of signature and settings.
    """
    bound, problems = bind_objective(function, settings, where=where)
    if problems:
        raise InputError(problems)
    return bound.demand


def bind_objective(function: Callable[..., Any], settings: Mapping[str, Any], *, where: str = "loss") -> tuple[Bound, list[str]]:
    """Binds an objective to its settings and statistics; all problems come back as sentences."""
    signature = _Signature.of(function)
    statistic_names = [name for name in signature.positional if name not in TENSOR_NAMES and name not in FACTS]
    problems = signature.problems + [_unknown(signature.name, name) for name in statistic_names if name not in settings]
    problems += _setting_problems(signature, settings, where, extra=statistic_names)
    statistics: dict[str, Bound | float] = {}
    for name in statistic_names:
        if name in settings:
            source, found = _statistic(signature, name, settings[name], f"{where}.{name}")
            problems += found
            if source is not None:
                statistics[name] = source
    demand = _demand(signature.positional, estimator=False)
    if not demand.gradient_tensors:
        problems.append(
            f"{signature.name} asks for no policy_ tensor, so nothing would be trained; name at least one, e.g. policy_chosen_logps"
        )
    for source in statistics.values():
        if isinstance(source, Bound):
            demand |= source.demand
    return Bound(function, signature.positional, _given(signature, settings), statistics, demand), problems


def bind_estimator(function: Callable[..., Any], settings: Mapping[str, Any], *, where: str) -> tuple[Bound, list[str]]:
    """Binds an estimator (or a diagnostic) to its settings: per-example tensors and facts only, perhaps its `previous` state."""
    signature = _Signature.of(function)
    problems = list(signature.problems)
    for name in signature.positional:
        if name in TENSOR_NAMES and TENSOR_NAMES[name].reduction == "token_":
            problems.append(f"{signature.name}: '{name}': an estimator sees one value per example; ask for the sum or the mean")
        elif name in TOKEN_FACTS:
            problems.append(f"{signature.name}: '{name}': an estimator sees one value per example, not one per token")
        elif name not in TENSOR_NAMES and name not in FACTS and name != PREVIOUS:
            problems.append(_unknown(signature.name, name, statistic=False))
    problems += _setting_problems(signature, settings, where, extra=())
    return Bound(function, signature.positional, _given(signature, settings), {}, _demand(signature.positional, estimator=True)), problems


@dataclass(frozen=True)
class _Signature:
    name: str
    positional: tuple[str, ...]
    settings: tuple[str, ...]
    annotations: Mapping[str, Any]
    problems: list[str]

    @classmethod
    def of(cls, function: Callable[..., Any]) -> "_Signature":
        positional: list[str] = []
        settings: list[str] = []
        problems: list[str] = []
        name = function.__name__
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                problems.append(f"{name}: {parameter}: name every tensor; open-ended arguments cannot be checked")
                continue
            if parameter.default is not parameter.empty:
                problems.append(f"{name}: {parameter.name} has a default in code; values stand in the loss yaml alone, so remove it")
            (settings if parameter.kind is parameter.KEYWORD_ONLY else positional).append(parameter.name)
        return cls(name, tuple(positional), tuple(settings), get_type_hints(function), problems)


def _unknown(function: str, name: str, *, statistic: bool = True) -> str:
    nearest = difflib.get_close_matches(name, [*TENSOR_NAMES, *FACTS], n=1, cutoff=0.0)[0]
    advice = "; if it is a batch statistic, give its estimator or a number in the loss yaml" if statistic else ""
    return f"{function}: '{name}' is neither a tensor nor a fact (nearest: {nearest}){advice}"


def _setting_problems(signature: _Signature, settings: Mapping[str, Any], where: str, *, extra: list[str] | tuple[str, ...]) -> list[str]:
    valid = [*signature.settings, *extra]
    takes = ", ".join(valid) if valid else "no settings"
    problems = [
        f"{where}.{key}: {signature.name} takes {takes}{hint(key, valid)}" for key in settings if key not in valid and key not in RESERVED
    ]
    problems += [f"{where}.{key} is missing; {signature.name} takes {takes}" for key in signature.settings if key not in settings]
    for key in signature.settings:
        if key in settings and (problem := type_problem(settings[key], signature.annotations.get(key), f"{where}.{key}")):
            problems.append(problem)
    return problems


def _given(signature: _Signature, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as the function gets them: yaml's `beta: 1` becomes the float it is annotated as."""
    given = {key: settings[key] for key in signature.settings if key in settings}
    numbers = {key: number_of(value) for key, value in given.items() if signature.annotations.get(key) is float}
    return given | {key: number for key, number in numbers.items() if number is not None}


def _statistic(signature: _Signature, name: str, value: object, where: str) -> tuple[Bound | float | None, list[str]]:
    """What fills one batch statistic: the estimator a node names, or a number."""
    node, number = as_node(value), number_of(value)
    if node is not None and "_target_" in node:
        function = load_function(node, where)
        if isinstance(function, str):
            return None, [function]
        return bind_estimator(function, {key: node[key] for key in node if key not in RESERVED}, where=where)
    if number is None:
        return None, [f"{where} must be an estimator (a node with _target_) or a number, got {shown(value)}"]
    annotation = signature.annotations.get(name)
    if isinstance(annotation, type) and issubclass(annotation, tuple):
        return None, [f"{signature.name}.{name} is a named tuple; give an estimator, not a number"]
    if annotation is PerExample:
        return None, [f"{signature.name}.{name} is one value per example; give an estimator, not a number"]
    return number, []


def _demand(arguments: tuple[str, ...], *, estimator: bool) -> Demand:
    tensors = frozenset(TENSOR_NAMES[name] for name in arguments if name in TENSOR_NAMES)
    facts = frozenset(name for name in arguments if name in FACTS)
    spoken_of = {answer_of(name.view) for name in tensors} | {answer_of(name) for name in facts if name.endswith("_lengths")}
    spoken_of |= set(ANSWERS) if facts & TOKEN_FACTS else set()  # a mask compares the two answers
    required = frozenset(answer for answer in ANSWERS if answer in spoken_of and f"{answer}_present" not in facts)
    if estimator:
        detached = frozenset(name._replace(model="detached_policy") if name.model == "policy" else name for name in tensors)
        return Demand(estimator_tensors=detached, estimator_facts=facts, required_answers=required)
    return Demand(objective_tensors=tensors, objective_facts=facts, required_answers=required)
