"""Laws of BCO."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_world import loss_node
from torch import Tensor
from torch.nn.functional import logsigmoid

from medvlm_dpo.objectives.bco import bco, bco_pair
from medvlm_dpo.objectives.terms import build_objective, problems_of
from medvlm_dpo.vocab import ObjectiveOutput

ratios = st.floats(-50, 50)
betas = st.floats(0.01, 2)


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def pair_of(a: float, b: float, mean: float, beta: float) -> ObjectiveOutput:
    """The loss of two log-ratios."""
    return bco_pair(one(a), one(b), one(0), one(0), torch.tensor(mean, dtype=torch.float64), beta=beta)


def single_of(a: float, b: float, mean: float, beta: float, present: tuple[int, int] = (1, 1)) -> ObjectiveOutput:
    facts = (one(present[0]), one(present[1]))
    return bco(one(a), one(b), one(0), one(0), *facts, torch.tensor(mean, dtype=torch.float64), beta=beta)


@given(ratios, betas)
def test_where_policy_and_reference_agree(logp: float, beta: float) -> None:
    same, shift = (one(logp), one(-logp)), torch.tensor(0.0, dtype=torch.float64)
    pair, single = bco_pair(*same, *same, shift, beta=beta), bco(*same, *same, one(1), one(1), shift, beta=beta)
    assert pair.loss.item() == pytest.approx(2 * math.log(2), rel=1e-12)
    assert single.loss.item() == pytest.approx(math.log(2), rel=1e-12)
    assert all(reward.item() == 0 for output in (pair, single) for reward in output.rewards.values())


@given(ratios, ratios, betas)
def test_a_mean_of_0_is_the_pair_loss_of_trl(a: float, b: float, beta: float) -> None:
    """-LS(beta a) - LS(-beta b), also through the yaml with `mean_logratio: 0.0`."""
    expected = -logsigmoid(one(beta * a)) - logsigmoid(one(-beta * b))
    torch.testing.assert_close(pair_of(a, b, 0.0, beta).loss, expected)
    node = {**loss_node("bco_pair"), "beta": beta, "mean_logratio": 0.0}
    objective = build_objective(node, batch_size=1)
    assert objective.estimators == {}
    tensors = {"policy_chosen_logps": one(a), "policy_rejected_logps": one(b)}
    tensors |= {"reference_chosen_logps": one(0), "reference_rejected_logps": one(0)}
    (output,) = objective.evaluate(tensors, {}, {}, torch.arange(1))
    torch.testing.assert_close(output.output.loss, expected)


@given(ratios, ratios, ratios, betas)
def test_the_answers_share_the_weight_of_their_example(a: float, b: float, mean: float, beta: float) -> None:
    both, chosen, rejected = (single_of(a, b, mean, beta, present).loss for present in ((1, 1), (1, 0), (0, 1)))
    torch.testing.assert_close(both, (chosen + rejected) / 2)
    torch.testing.assert_close(2 * both, pair_of(a, b, mean, beta).loss)


@given(ratios, ratios, ratios, betas, st.floats(-20, 20))
def test_only_the_distance_to_the_mean_counts(a: float, b: float, mean: float, beta: float, shift: float) -> None:
    torch.testing.assert_close(pair_of(a + shift, b + shift, mean + shift, beta).loss, pair_of(a, b, mean, beta).loss)


@given(ratios, ratios, betas)
def test_swapping_the_answers_adds_the_margin(a: float, b: float, beta: float) -> None:
    """Without shift: softplus(x) - softplus(-x) is x."""
    forward, swapped = pair_of(a, b, 0.0, beta), pair_of(b, a, 0.0, beta)
    torch.testing.assert_close(swapped.loss - forward.loss, forward.rewards["chosen"] - forward.rewards["rejected"])


@given(ratios, ratios, ratios, betas, st.floats(0.01, 10))
def test_a_likelier_chosen_answer_never_costs(a: float, b: float, mean: float, beta: float, more: float) -> None:
    for loss in (pair_of, single_of):
        assert loss(a + more, b, mean, beta).loss <= loss(a, b, mean, beta).loss
        assert loss(a, b - more, mean, beta).loss <= loss(a, b, mean, beta).loss


@pytest.mark.parametrize(("present", "gone"), [((1, 0), 1), ((0, 1), 0)])
@pytest.mark.parametrize("value", [0.0, -123.0])
def test_an_absent_answer_has_no_part(present: tuple[int, int], gone: int, value: float) -> None:
    chosen, rejected = (one(value if place == gone else -3.0 - place).requires_grad_(True) for place in (0, 1))
    shift = torch.tensor(0.25, dtype=torch.float64)
    loss = bco(chosen, rejected, one(-3.5), one(-4.5), one(present[0]), one(present[1]), shift, beta=0.1).loss
    gradients = torch.autograd.grad(loss.sum(), [chosen, rejected])
    assert gradients[gone].item() == 0
    assert gradients[1 - gone].item() != 0
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.025 if present[0] else 0.025)), rel=1e-12)


@pytest.mark.parametrize("loss", ["bco", "bco_pair"])
def test_ranges_name_their_keys(loss: str) -> None:
    assert problems_of(loss_node(loss, "loss.beta=0"), batch_size=4) == ["loss.beta must be > 0, got 0"]


def test_only_single_answers_may_be_absent() -> None:
    answers = {loss: build_objective(loss_node(loss), batch_size=4).demand.required_answers for loss in ("bco", "bco_pair")}
    assert answers == {"bco": frozenset(), "bco_pair": frozenset({"chosen", "rejected"})}
