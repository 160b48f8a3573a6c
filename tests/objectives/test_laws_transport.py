"""Laws of AOT: over the global batch, value and gradient are those of autograd through the sort."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_world import column, evaluated, loss_node
from torch import Tensor
from torch.nn.functional import logsigmoid

from medvlm_dpo.objectives.contrastive import dpo
from medvlm_dpo.objectives.terms import build_objective, problems_of, weighted_loss

NAMES = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")
columns = st.integers(2, 9).flatmap(lambda size: st.tuples(*[st.lists(st.floats(-30, 0), min_size=size, max_size=size)] * 4))


def served(values: tuple[list[float], ...]) -> dict[str, Tensor]:
    """The four columns by name; the policy's as leaves with gradient."""
    return {name: column(value).requires_grad_(name.startswith("policy")) for name, value in zip(NAMES, values, strict=True)}


def total(loss: str, tensors: dict[str, Tensor], beta: float) -> Tensor:
    objective = build_objective({**loss_node(loss), "beta": beta}, batch_size=2)
    facts = {"chosen_lengths": torch.ones_like(tensors[NAMES[0]])}  # only their number is read
    return weighted_loss(evaluated(objective, tensors, facts)).sum()


def through_the_sort(loss: str, tensors: dict[str, Tensor], beta: float) -> Tensor:
    """What the page says: sort, subtract, log sigmoid; autograd follows the sort."""
    chosen, rejected, reference_chosen, reference_rejected = (tensors[name] for name in NAMES)
    if loss == "aot":
        high, low = chosen - rejected, reference_chosen - reference_rejected
    else:
        high, low = chosen - reference_chosen, rejected - reference_rejected
    return -logsigmoid(beta * (high.sort(stable=True).values - low.sort(stable=True).values)).sum()


@pytest.mark.parametrize("loss", ["aot", "aot_unpaired"])
@given(values=columns, beta=st.floats(0.01, 2))
def test_value_and_gradient_are_those_of_the_global_sort(loss: str, values: tuple[list[float], ...], beta: float) -> None:
    tensors = served(values)
    policy = [tensors[name] for name in NAMES[:2]]
    ours, sorted_ = total(loss, tensors, beta), through_the_sort(loss, tensors, beta)
    torch.testing.assert_close(ours, sorted_, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(ours, policy), torch.autograd.grad(sorted_, policy), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", ["aot", "aot_unpaired"])
@given(values=st.tuples(*[st.floats(-30, 0)] * 4), beta=st.floats(0.01, 2))
def test_a_batch_of_one_is_dpo(loss: str, values: tuple[float, ...], beta: float) -> None:
    tensors = served(tuple([value] for value in values))
    expected = dpo(*(tensors[name] for name in NAMES), beta=beta).loss.sum()
    torch.testing.assert_close(total(loss, tensors, beta), expected)
    policy = [tensors[name] for name in NAMES[:2]]
    torch.testing.assert_close(torch.autograd.grad(total(loss, tensors, beta), policy), torch.autograd.grad(expected, policy))


@pytest.mark.parametrize("loss", ["aot", "aot_unpaired"])
@given(values=columns, beta=st.floats(0.01, 2))
def test_where_policy_and_reference_agree(loss: str, values: tuple[list[float], ...], beta: float) -> None:
    tensors = served((values[0], values[1], values[0], values[1]))
    assert total(loss, tensors, beta).item() == pytest.approx(len(values[0]) * math.log(2), rel=1e-12)


@given(values=columns)
def test_sorting_never_raises_the_loss(values: tuple[list[float], ...]) -> None:
    """Coupling equal ranks is the cheapest of all couplings for a convex loss, so dpo, one of them, is never lower."""
    tensors = served(values)
    pairs = dpo(*(tensors[name] for name in NAMES), beta=0.1).loss.sum()
    for loss in ("aot", "aot_unpaired"):
        assert total(loss, tensors, 0.1) <= pairs + 1e-9


@pytest.mark.parametrize("loss", ["aot", "aot_unpaired"])
def test_ranges_name_their_keys(loss: str) -> None:
    assert problems_of(loss_node(loss, "loss.beta=-1"), batch_size=4) == ["loss.beta must be > 0, got -1"]


def test_partners_cannot_be_one_number() -> None:
    assert problems_of({**loss_node("aot"), "sorted_reference_gap": 0.0}, batch_size=4) == [
        "aot.sorted_reference_gap is one value per example; give an estimator, not a number"
    ]
    assert problems_of({**loss_node("aot_unpaired"), "sorted_partners": 0.0}, batch_size=4) == [
        "aot_unpaired.sorted_partners is a named tuple; give an estimator, not a number"
    ]
