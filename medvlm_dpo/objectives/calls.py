"""Calling the functions of the contract: serving arguments by name, estimating over the global batch, cutting to a micro-batch."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.demand import PREVIOUS, Bound
from medvlm_dpo.vocab import TENSOR_NAMES, ObjectiveOutput

Statistic = Tensor | tuple[Tensor, ...]
State = Mapping[str, Tensor]


def find(name: str, served: Mapping[str, Tensor]) -> Tensor | None:
    """The served tensor or fact of this name. For a detached policy tensor the one with gradient serves too, cut here."""
    if name in served:
        return served[name]
    parts = TENSOR_NAMES.get(name)
    twin = str(parts._replace(model="policy")) if parts is not None and parts.model == "detached_policy" else None
    return served[twin].detach() if twin is not None and twin in served else None


def serve(name: str, served: Mapping[str, Tensor]) -> Tensor:
    """As `find`, for a name that must have been served.

    Raises:
        KeyError: if it was not, which is a mistake of the host.
    """
    value = find(name, served)
    if value is None:
        raise KeyError(f"{name} was asked for and not served; served are {', '.join(sorted(served))}")
    return value


def estimate(estimator: Bound, served: Mapping[str, Tensor], previous: State) -> tuple[Statistic, dict[str, Tensor] | None]:
    """One estimator over the whole global batch, in float64 and without gradient.

    Args:
        estimator: the bound function.
        served: its tensors and facts by name, [global example], in order of global position.
        previous: its state of the step before, empty at the first step.

    Returns:
        The value, and the state to keep if it has one.

    Raises:
        InputError: if the function returns something else.
    """
    with torch.no_grad():
        arguments: list[Any] = [
            previous if name == PREVIOUS else serve(_as_served(name), served).detach().double() for name in estimator.arguments
        ]
        result = estimator.function(*arguments, **estimator.settings)
    if PREVIOUS not in estimator.arguments:
        return _statistic(result, estimator), None
    pair = cast("tuple[object, ...]", result) if isinstance(result, tuple) else ()
    if len(pair) != 2 or not isinstance(pair[1], dict):
        raise InputError(f"{estimator.name} asks for its previous state, so it must return the pair (value, new state)")
    return _statistic(pair[0], estimator), cast("dict[str, Tensor]", pair[1])


def evaluate(
    bound: Bound, tensors: Mapping[str, Tensor], facts: Mapping[str, Tensor], statistics: Mapping[str, Statistic]
) -> ObjectiveOutput:
    """One objective over one micro-batch.

    Args:
        bound: the bound function.
        tensors: by name, [example] or [example, token], all float32 or all float64.
        facts: by name, [example], of any type; they take the tensors' type.
        statistics: by parameter, already cut to the micro-batch. Fixed numbers are filled in here.

    Raises:
        TypeError: if a tensor is neither float32 nor float64.
        InputError: if the function returns something else than an `ObjectiveOutput`.
    """
    asked = {name: serve(name, tensors) for name in bound.arguments if name in TENSOR_NAMES}
    for name, value in asked.items():
        if value.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name} must be float32 or float64, got {value.dtype}")
    sample = next(iter(asked.values()))
    arguments = [_argument(name, bound, asked, facts, statistics, sample) for name in bound.arguments]
    output = bound.function(*arguments, **bound.settings)
    if not isinstance(output, ObjectiveOutput):
        raise InputError(f"{bound.name} must return an ObjectiveOutput, got {type(output).__name__}")
    return output


def cut(statistic: Statistic, positions: Tensor) -> Statistic:
    """A statistic for the rows of one micro-batch: values per example are cut to their global positions, scalars stay."""

    def rows(value: Tensor) -> Tensor:
        return value[positions.to(value.device)] if value.ndim else value

    return _each(statistic, rows)


def _statistic(value: object, estimator: Bound) -> Statistic:
    parts = cast("tuple[object, ...]", value if isinstance(value, tuple) else (value,))
    for part in parts:
        if not isinstance(part, Tensor):
            raise InputError(f"{estimator.name} must return a tensor or a named tuple of tensors, got {type(part).__name__}")
    return cast("Statistic", value)


def _argument(
    name: str, bound: Bound, tensors: Mapping[str, Tensor], facts: Mapping[str, Tensor], statistics: Mapping[str, Statistic], sample: Tensor
) -> Statistic:
    if name in tensors:
        return tensors[name]
    if name not in bound.statistics:
        return serve(name, facts).to(sample)
    source = bound.statistics[name]
    if isinstance(source, Bound):
        return _each(statistics[name], partial(_like, sample))
    return torch.tensor(source).to(sample)


def _like(sample: Tensor, value: Tensor) -> Tensor:
    return value.detach().to(sample)


def _each(statistic: Statistic, change: Callable[[Tensor], Tensor]) -> Statistic:
    if isinstance(statistic, Tensor):
        return change(statistic)
    named = cast("Any", type(statistic))  # a named tuple: its class is rebuilt from its changed fields
    return named(*(change(value) for value in statistic))


def _as_served(name: str) -> str:
    """An estimator's `policy_` tensor is served detached: over the gathered batch nothing carries gradient."""
    parts = TENSOR_NAMES.get(name)
    return str(parts._replace(model="detached_policy")) if parts is not None and parts.model == "policy" else name
