"""Runs a bound objective once on made-up values, so that a setting out of range or a broken body is found before any weight is read."""

from collections.abc import Mapping

import torch
from torch import Tensor

from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.calls import Statistic, cut, estimate, evaluate
from medvlm_dpo.objectives.demand import Bound, Demand
from medvlm_dpo.vocab import TOKEN_FACTS, VIEWS, ObjectiveOutput

_TOKENS = 3
_FACT_VALUES = {"uniform_draw": 0.5, "chosen_lengths": float(_TOKENS), "rejected_lengths": float(_TOKENS)}


def dry_run(bound: Bound, *, batch_size: int, where: str) -> list[str]:
    """Problems that show only when the functions run.

    Args:
        bound: an objective whose signature is in order.
        batch_size: examples of the global batch; estimators see as many, so that they can refuse too few.
        where: the node's place in the configuration; it replaces `loss` in front of a setting's key.
    """
    tensors, facts = _made_up(bound.demand, batch_size)
    statistics: dict[str, Statistic] = {}
    problems: list[str] = []
    for parameter, estimator in bound.estimators.items():
        try:
            value, _ = estimate(estimator, {**tensors, **facts}, {})
        except Exception as error:
            problems += _sentences(error, bound.name, f"{where}.{parameter}")
            continue
        statistics[parameter] = value
        problems += _statistic_problems(value, estimator.name, batch_size)
    if problems:
        return problems
    try:
        output = evaluate(bound, tensors, facts, statistics)
    except Exception as error:
        return _sentences(error, bound.name, where)
    return _output_problems(output, bound, tensors, batch_size) or _coupling_problems(output.loss, bound, (tensors, facts, statistics))


def _made_up(demand: Demand, batch_size: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    for name in demand.tensors:
        shape = torch.Size((batch_size, _TOKENS) if name.reduction == "token_" else (batch_size,))
        # Ordinary log-probabilities, no two alike; 0 is a certainty some losses refuse.
        value = -1.0 - torch.linspace(0, 1, shape.numel(), dtype=torch.float64).reshape(shape)
        tensors[str(name)] = value.requires_grad_(name.model == "policy")
    facts = {
        name: torch.full((batch_size, _TOKENS) if name in TOKEN_FACTS else (batch_size,), _FACT_VALUES.get(name, 1.0), dtype=torch.float64)
        for name in demand.facts
    }
    return tensors, facts


def _sentences(error: Exception, name: str, where: str) -> list[str]:
    """A refusal as the function words it, with the true place of its keys; anything else is a broken body."""
    if isinstance(error, InputError):
        return [where + text.removeprefix("loss") if text.startswith("loss.") else text for text in error.problems]
    if isinstance(error, ValueError):
        text = str(error)
        return [where + text.removeprefix("loss") if text.startswith("loss.") else f"{name} {text}"]
    return [f"{where}: {name} failed on made-up values before training ({type(error).__name__}: {error})"]


def _statistic_problems(value: Statistic, name: str, batch_size: int) -> list[str]:
    return [
        f"{name} must return a scalar, one value per example ({batch_size},), or a named tuple of these, got shape {tuple(part.shape)}"
        for part in (value if isinstance(value, tuple) else (value,))
        if tuple(part.shape) not in ((), (batch_size,))
    ]


def _output_problems(output: ObjectiveOutput, bound: Bound, tensors: Mapping[str, Tensor], batch_size: int) -> list[str]:
    problems = [
        f"{bound.name}: '{view}' is no view; rewards are kept by {', '.join(VIEWS)}" for view in output.rewards if view not in VIEWS
    ]
    shapes = {"loss": output.loss, **{f"reward {view}": reward for view, reward in output.rewards.items()}}
    problems += [
        f"{bound.name}: the {what} must hold one value per example ({batch_size},), got shape {tuple(value.shape)}"
        for what, value in shapes.items()
        if tuple(value.shape) != (batch_size,)
    ]
    if not problems and not bool(torch.isfinite(output.loss).all()):
        problems.append(
            f"{bound.name}: the loss is {output.loss.detach()[0].item()} on made-up values; is a setting or a fixed statistic 0?"
        )
    return problems or _gradient_problems(output.loss, bound, tensors)


def _coupling_problems(
    loss: Tensor, bound: Bound, served: tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Statistic]]
) -> list[str]:
    """An example's loss must not change with its neighbours: micro-batches would then change the result."""
    tensors, facts, statistics = served
    first = torch.arange(1)
    own = {name: cut(value, first) for name, value in statistics.items()}
    alone = evaluate(bound, {name: value[:1] for name, value in tensors.items()}, {name: value[:1] for name, value in facts.items()}, own)
    if torch.allclose(alone.loss, loss[:1], rtol=1e-9, atol=1e-12, equal_nan=True):
        return []
    return [
        f"{bound.name}: the loss of an example changes with the examples beside it, so it would depend on trainer.micro_batch_size; "
        "move what looks at the whole batch into an estimator"
    ]


def _gradient_problems(loss: Tensor, bound: Bound, tensors: Mapping[str, Tensor]) -> list[str]:
    names = [name for name in bound.arguments if name in tensors and tensors[name].requires_grad]
    inputs = [tensors[name] for name in names]
    unreached = torch.autograd.grad(loss.sum(), inputs, allow_unused=True) if loss.requires_grad else [None] * len(names)
    return [
        f"{bound.name}: no gradient reaches {name}; ask for detached_{name} where it is meant to carry none"
        for name, gradient in zip(names, unreached, strict=True)
        if gradient is None
    ]
