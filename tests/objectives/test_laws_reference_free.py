"""Laws of the losses without a reference; those of simpo stand with the first five losses in test_loss_laws."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from loss_world import THREE, Golden, compute, loss_node
from torch import Tensor
from torch.nn.functional import softplus

from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.contrastive import dpo
from medvlm_dpo.objectives.reference_free import odds_ratio, policy_hinge, simpo, uniform_dpo
from medvlm_dpo.objectives.terms import build_objective

logps = st.floats(-50, 0)
betas = st.floats(0.01, 2)


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


@given(logps, betas)
def test_where_both_answers_are_equally_likely(logp: float, beta: float) -> None:
    """The hinge is its margin, the other two are ln 2."""
    assert policy_hinge(one(logp), one(logp), margin=beta).loss.item() == pytest.approx(beta)
    assert uniform_dpo(one(logp), one(logp), beta=beta).loss.item() == pytest.approx(math.log(2))
    assert odds_ratio(one(logp), one(logp)).loss.item() == pytest.approx(math.log(2))


@given(logps, logps, logps, betas)
def test_uniform_dpo_is_dpo_with_a_reference_that_likes_both_answers_equally(pc: float, pr: float, reference: float, beta: float) -> None:
    expected = dpo(one(pc), one(pr), one(reference), one(reference), beta=beta).loss
    torch.testing.assert_close(uniform_dpo(one(pc), one(pr), beta=beta).loss, expected)


@given(logps, logps, betas)
def test_swapping_the_pair_turns_the_margin(chosen: float, rejected: float, beta: float) -> None:
    """Loss(swapped) - loss is the margin, for the hinge where both sides are active."""
    forward, swapped = (uniform_dpo(one(x), one(y), beta=beta) for x, y in ((chosen, rejected), (rejected, chosen)))
    torch.testing.assert_close(swapped.loss - forward.loss, one(beta * (chosen - rejected)))
    forward, swapped = (policy_hinge(one(x), one(y), margin=60.0) for x, y in ((chosen, rejected), (rejected, chosen)))
    torch.testing.assert_close(swapped.loss - forward.loss, one(2 * (chosen - rejected)))


@given(st.floats(-50, -0.01), st.floats(-50, -0.01))
def test_odds_ratio_is_the_logarithm_of_a_ratio(chosen: float, rejected: float) -> None:
    """Log(1 + odds(rejected) / odds(chosen)) with odds(x) = 1 / (exp(-x) - 1); swapped, the difference is the log of the odds ratio."""
    ratio = math.expm1(-chosen) / math.expm1(-rejected)
    forward, swapped = odds_ratio(one(chosen), one(rejected)), odds_ratio(one(rejected), one(chosen))
    assert forward.loss.item() == pytest.approx(math.log1p(ratio), rel=1e-9, abs=1e-12)
    assert (swapped.loss - forward.loss).item() == pytest.approx(-math.log(ratio), rel=1e-9, abs=1e-9)


@given(logps, logps, st.floats(0.01, 10))
def test_a_likelier_chosen_answer_never_costs(chosen: float, rejected: float, more: float) -> None:
    for loss in (lambda x, y: policy_hinge(x, y, margin=1.0), lambda x, y: uniform_dpo(x, y, beta=0.1), odds_ratio):
        before = loss(one(chosen), one(rejected)).loss
        assert loss(one(chosen + more), one(rejected)).loss <= before
        assert loss(one(chosen), one(rejected - more)).loss <= before


@given(logps, logps, st.floats(0, 10))
def test_the_hinge_costs_nothing_once_the_margin_is_reached(chosen: float, rejected: float, margin: float) -> None:
    assume(abs(chosen - rejected - margin) > 1e-9)
    loss = policy_hinge(one(chosen), one(rejected), margin=margin).loss.item()
    assert (loss == 0) == (chosen - rejected > margin)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mean", [0.0, 1e-4, -1e-9])
def test_a_certain_answer_has_finite_odds_and_no_gradient(mean: float, dtype: torch.dtype) -> None:
    """Its odds count as those of exp(-1e-7), about 1e7; the other answer still learns."""
    certain, other = (torch.tensor([value], dtype=dtype, requires_grad=True) for value in (mean, -3.0))
    loss = odds_ratio(other, certain).loss
    gradients = torch.autograd.grad(loss.sum(), (certain, other))
    assert loss.item() == pytest.approx(math.log1p(math.expm1(3.0) / 1e-7), rel=1e-5)
    assert gradients[0].item() == 0
    assert gradients[1].item() == pytest.approx(-1 / -math.expm1(-3.0), rel=1e-4)  # d log odds / dx = 1 / (1 - exp(x))


@pytest.mark.parametrize("mean", [-1e-6, -1e-3, -0.5, -0.6931, -0.6932, -2.0, -30.0])
def test_odds_keep_their_digits_in_single_precision(mean: float) -> None:
    """On either side of p = 1/2: with one branch alone, float32 loses half its digits at one of the ends."""
    single = torch.tensor([mean])
    expected = softplus(-(one(single.item()) - torch.log(-torch.expm1(one(single.item()))) + math.log(math.expm1(1.0))))
    assert odds_ratio(single, torch.tensor([-1.0])).loss.item() == pytest.approx(expected.item(), rel=2e-6)


def test_cpo_and_orpo_without_their_supervised_term() -> None:
    """What is left is the preference term alone, which needs no length and no second view."""
    cpo = compute(Golden("cpo", THREE, [], ("loss.weights.sft_token_mean=0",)))
    values = THREE.served()
    torch.testing.assert_close(cpo.loss, uniform_dpo(values["policy_chosen_logps"], values["policy_rejected_logps"], beta=0.1).loss)
    assert not build_objective(loss_node("cpo", "loss.weights.sft_token_mean=0"), batch_size=2).demand.facts
    cpo_simpo = compute(Golden("cpo_simpo", THREE, [], ("loss.weights.sft_token_mean=0", "loss.beta=2", "loss.gamma_beta_ratio=0.5")))
    means = (values["policy_chosen_mean_logps"], values["policy_rejected_mean_logps"])
    torch.testing.assert_close(cpo_simpo.loss, simpo(*means, beta=2.0, gamma_beta_ratio=0.5).loss)


@pytest.mark.parametrize("name", ["simpo", "slic", "cpo", "cpo_simpo", "orpo"])
def test_no_reference_is_read(name: str) -> None:
    assert not build_objective(loss_node(name), batch_size=2).demand.needs_reference


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(InputError, match=r"loss\.margin must be >= 0, got -1"):
        policy_hinge(one(-1.0), one(-2.0), margin=-1.0)
    with pytest.raises(InputError, match=r"loss\.beta must be > 0, got 0"):
        uniform_dpo(one(-1.0), one(-2.0), beta=0.0)
    with pytest.raises(InputError, match=r"loss\.terms\.policy_hinge\.margin must be >= 0, got -2"):
        build_objective(loss_node("slic", "loss.margin=-2"), batch_size=2)
