"""Laws of the losses that read the divergence from the reference: tdpo1, tdpo2 and chip's kl_margin."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_world import loss_node
from torch import Tensor

from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.contrastive import dpo
from medvlm_dpo.objectives.terms import build_objective, weighted_loss
from medvlm_dpo.objectives.token_kl import kl_margin, tdpo1, tdpo2

betas = st.floats(0.01, 2)
divergences = st.floats(0, 20)
sums = st.floats(-50, 0)
pairs = st.tuples(sums, sums, sums, sums).map(lambda values: (one(values[0]), one(values[1]), one(values[2]), one(values[3])))
Pair = tuple[Tensor, Tensor, Tensor, Tensor]


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


@given(pairs, betas, st.floats(0, 3))
def test_without_divergence_both_are_dpo(pair: Pair, beta: float, kl_weight: float) -> None:
    expected = dpo(*pair, beta=beta)
    for output in (tdpo1(*pair, one(0), one(0), beta=beta), tdpo2(*pair, one(0), one(0), beta=beta, kl_weight=kl_weight)):
        torch.testing.assert_close(output.loss, expected.loss)
        torch.testing.assert_close(output.rewards, expected.rewards)


@given(pairs, divergences, divergences, betas)
def test_tdpo2_is_dpo_at_weight_0_and_tdpo1_at_weight_1(pair: Pair, chosen: float, rejected: float, beta: float) -> None:
    kls = (one(chosen), one(rejected))
    torch.testing.assert_close(tdpo2(*pair, *kls, beta=beta, kl_weight=0.0).loss, dpo(*pair, beta=beta).loss)
    full, first = tdpo2(*pair, *kls, beta=beta, kl_weight=1.0), tdpo1(*pair, *kls, beta=beta)
    torch.testing.assert_close(full.loss, first.loss)
    torch.testing.assert_close(full.rewards, first.rewards)


@given(pairs, divergences, divergences, betas)
def test_swapping_the_pair_turns_the_margin(pair: Pair, chosen: float, rejected: float, beta: float) -> None:
    """-log sigmoid(-x) + log sigmoid(x) is x, the margin of the rewards."""
    swapped_pair = (pair[1], pair[0], pair[3], pair[2])
    output = tdpo1(*pair, one(chosen), one(rejected), beta=beta)
    swapped = tdpo1(*swapped_pair, one(rejected), one(chosen), beta=beta)
    torch.testing.assert_close(swapped.loss - output.loss, output.rewards["chosen"] - output.rewards["rejected"])
    difference = (pair[0] - pair[2] - pair[1] + pair[3]) - 0.3 * (rejected - chosen)
    second = tdpo2(*pair, one(chosen), one(rejected), beta=beta, kl_weight=0.3)
    swapped = tdpo2(*swapped_pair, one(rejected), one(chosen), beta=beta, kl_weight=0.3)
    torch.testing.assert_close(swapped.loss - second.loss, beta * difference)


@given(pairs, divergences, divergences, betas, st.floats(0.01, 5))
def test_leaving_the_reference_on_the_rejected_answer_never_pays(
    pair: Pair, chosen: float, rejected: float, beta: float, more: float
) -> None:
    assert tdpo1(*pair, one(chosen), one(rejected + more), beta=beta).loss >= tdpo1(*pair, one(chosen), one(rejected), beta=beta).loss
    for weight in (0.0, 0.5, 2.0):
        near, far = (tdpo2(*pair, one(chosen), one(kl), beta=beta, kl_weight=weight).loss for kl in (rejected, rejected + more))
        assert far >= near
    assert kl_margin(one(chosen), one(rejected + more), beta=beta).loss > kl_margin(one(chosen), one(rejected), beta=beta).loss


def test_where_policy_and_reference_agree() -> None:
    same = (one(-3.0), one(-5.0), one(-3.0), one(-5.0))
    for output in (tdpo1(*same, one(0), one(0), beta=0.3), tdpo2(*same, one(0), one(0), beta=0.3, kl_weight=0.5)):
        assert output.loss.item() == pytest.approx(math.log(2), rel=1e-12)
        assert {view: reward.item() for view, reward in output.rewards.items()} == {"chosen": 0, "rejected": 0}
    assert kl_margin(one(0), one(0), beta=0.3) == (one(0), {})


@pytest.mark.parametrize(("name", "chosen_moves"), [("tdpo1", True), ("tdpo2", False), ("chip", False), ("chip_released", False)])
def test_only_tdpo1_trains_the_divergence_on_the_chosen_answer(name: str, chosen_moves: bool) -> None:
    """The other losses ask for it detached: it has a part in the value, and its gradient is cut where it is served."""
    objective = build_objective(loss_node(name), batch_size=2)
    tensors = {str(item): torch.full((1, 3) if item.reduction else (1,), -1.0, dtype=torch.float64) for item in objective.demand.tensors}
    chosen, rejected = one(0.4).requires_grad_(), one(0.9).requires_grad_()
    tensors.pop("detached_policy_chosen_forward_kl", None)
    tensors |= {"policy_chosen_forward_kl": chosen, "policy_rejected_forward_kl": rejected}
    facts = {fact: torch.ones((1, 3)) for fact in objective.demand.facts}
    loss = weighted_loss(objective.evaluate(tensors, facts, {}, torch.arange(1)))
    gradients = torch.autograd.grad(loss.sum(), [chosen, rejected], allow_unused=True)
    assert (gradients[0] is not None) is chosen_moves
    assert gradients[1] is not None
    assert gradients[1].item() > 0
    higher = weighted_loss(objective.evaluate({**tensors, "policy_chosen_forward_kl": one(0.5)}, facts, {}, torch.arange(1)))
    assert higher.item() < loss.item()


@given(divergences, divergences, betas)
def test_kl_margin_is_the_difference_of_the_divergences(chosen: float, rejected: float, beta: float) -> None:
    output = kl_margin(one(chosen), one(rejected), beta=beta)
    assert output.loss.item() == pytest.approx(beta * (rejected - chosen), rel=1e-12, abs=1e-12)
    assert output.rewards == {}


def test_messages_name_the_settings() -> None:
    values = tuple(one(-1.0) for _ in range(6))
    with pytest.raises(InputError) as raised:
        tdpo1(*values, beta=0.0)
    assert raised.value.problems == ("loss.beta must be > 0, got 0",)
    with pytest.raises(InputError) as raised:
        tdpo2(*values, beta=-1.0, kl_weight=-0.5)
    assert raised.value.problems == ("loss.beta must be > 0, got -1", "loss.kl_weight must be >= 0, got -0.5")
    with pytest.raises(InputError) as raised:
        kl_margin(one(0), one(0), beta=math.nan)
    assert raised.value.problems == ("loss.beta must be a finite number > 0, got nan",)
