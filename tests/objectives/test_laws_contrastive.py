"""Laws of objectives/contrastive.py: starting values, limits in which one loss becomes another, symmetries, and ranges."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medvlm_dpo.config.catalogue import compose_loss
from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.contrastive import cdpo, dpo, dpo_norm, hinge, ipo, ipo_sum, robust_dpo
from medvlm_dpo.vocab import ObjectiveOutput

logps = st.floats(-50, 0)
betas = st.floats(0.01, 2)
rates = st.floats(0, 0.45)
quads = st.tuples(logps, logps, logps, logps)


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def four(values: tuple[float, float, float, float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return one(values[0]), one(values[1]), one(values[2]), one(values[3])


def swapped(values: tuple[float, float, float, float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    chosen, rejected, reference_chosen, reference_rejected = four(values)
    return rejected, chosen, reference_rejected, reference_chosen


def at_margin(loss: Callable[..., ObjectiveOutput], margin: float, **settings: float) -> float:
    return loss(one(margin), one(0.0), one(0.0), one(0.0), **settings).loss.item()


def margin_of(output: ObjectiveOutput) -> Tensor:
    return output.rewards["chosen"] - output.rewards["rejected"]


@given(logps, logps, betas, rates)
def test_where_policy_and_reference_agree(chosen: float, rejected: float, beta: float, rate: float) -> None:
    """Log-ratios are 0: the logistic losses are ln 2 whatever the flip rate, hinge 1, ipo_sum 1 / (4 beta^2); all rewards 0."""
    same = (chosen, rejected, chosen, rejected)
    outputs = [dpo_norm(*four(same), beta=beta), *(loss(*four(same), beta=beta, flip_rate=rate) for loss in (cdpo, robust_dpo))]
    for output in outputs:
        assert output.loss.item() == pytest.approx(math.log(2), rel=1e-12)
    outputs += [hinge(*four(same), beta=beta), ipo_sum(*four(same), beta=beta)]
    assert outputs[-2].loss.item() == 1
    assert outputs[-1].loss.item() == pytest.approx(1 / (4 * beta**2), rel=1e-12)
    assert all(output.rewards["chosen"].item() == output.rewards["rejected"].item() == 0 for output in outputs)


@given(quads, betas)
def test_without_flips_both_are_dpo(values: tuple[float, float, float, float], beta: float) -> None:
    wanted = dpo(*four(values), beta=beta)
    for loss in (cdpo, robust_dpo):
        found = loss(*four(values), beta=beta, flip_rate=0.0)
        torch.testing.assert_close(found.loss, wanted.loss)
        torch.testing.assert_close(found.rewards, wanted.rewards)


@given(quads, betas)
def test_means_and_sums_are_one_formula(values: tuple[float, float, float, float], beta: float) -> None:
    """dpo_norm and ipo on means are what dpo and ipo_sum are on sums."""
    torch.testing.assert_close(dpo_norm(*four(values), beta=beta), dpo(*four(values), beta=beta))
    torch.testing.assert_close(ipo_sum(*four(values), beta=beta), ipo(*four(values), beta=beta))


@given(quads, betas, rates)
def test_swapping_the_pair(values: tuple[float, float, float, float], beta: float, rate: float) -> None:
    """The loss of the swapped pair less its own is the margin, times 1 - 2 rate for cdpo and divided by it for robust_dpo."""
    for loss, factor in ((cdpo, 1 - 2 * rate), (robust_dpo, 1 / (1 - 2 * rate))):
        forward, backward = (loss(*pair, beta=beta, flip_rate=rate) for pair in (four(values), swapped(values)))
        torch.testing.assert_close(backward.loss - forward.loss, factor * margin_of(forward), rtol=1e-7, atol=1e-7)
    forward, backward = (ipo_sum(*pair, beta=beta) for pair in (four(values), swapped(values)))
    torch.testing.assert_close(backward.loss - forward.loss, 2 * margin_of(forward) / beta**2, rtol=1e-6, atol=1e-6)


@given(quads, betas, rates)
def test_robust_dpo_is_unbiased(values: tuple[float, float, float, float], beta: float, rate: float) -> None:
    """Over pairs whose labels are exchanged at the assumed rate it is on average the dpo loss of the true labels."""
    right, wrong = (robust_dpo(*pair, beta=beta, flip_rate=rate).loss for pair in (four(values), swapped(values)))
    torch.testing.assert_close((1 - rate) * right + rate * wrong, dpo(*four(values), beta=beta).loss, rtol=1e-7, atol=1e-7)


@given(st.floats(0.01, 0.49), betas, st.floats(0.1, 5))
def test_cdpo_is_lowest_at_a_finite_margin(rate: float, beta: float, away: float) -> None:
    best = math.log((1 - rate) / rate) / beta
    lowest = at_margin(cdpo, best, beta=beta, flip_rate=rate)
    entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    assert lowest == pytest.approx(entropy, rel=1e-9)
    assert all(at_margin(cdpo, best + step, beta=beta, flip_rate=rate) > lowest for step in (away, -away))


@given(st.floats(-20, 20), betas)
def test_cdpo_at_one_half_ignores_the_order(margin: float, beta: float) -> None:
    """Lowest at 0 and even in the margin."""
    there = at_margin(cdpo, margin, beta=beta, flip_rate=0.5)
    assert there == pytest.approx(at_margin(cdpo, -margin, beta=beta, flip_rate=0.5), rel=1e-12)
    assert there >= math.log(2) - 1e-12


@given(st.floats(-20, 20), st.floats(0.01, 10), betas, rates)
def test_a_larger_margin_never_costs(margin: float, more: float, beta: float, rate: float) -> None:
    for loss in (dpo_norm, hinge):
        assert at_margin(loss, margin + more, beta=beta) <= at_margin(loss, margin, beta=beta)
    settings = {"beta": beta, "flip_rate": rate}
    assert at_margin(robust_dpo, margin + more, **settings) < at_margin(robust_dpo, margin, **settings) + 1e-12


def test_robust_dpo_can_be_negative() -> None:
    """Far out it falls by flip_rate / (1 - 2 flip_rate) = 1/8 per unit of the scaled margin."""
    assert at_margin(robust_dpo, 400.0, beta=0.1, flip_rate=0.1) == pytest.approx(-40 / 8, rel=1e-9)


@given(betas, st.floats(0, 20))
def test_hinge_is_content_with_a_margin_of_one_over_beta(beta: float, more: float) -> None:
    policy = one(1 / beta + more + 1e-6).requires_grad_(True)
    loss = hinge(policy, one(0.0), one(0.0), one(0.0), beta=beta).loss
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    assert loss.item() == gradient.item() == 0
    assert at_margin(hinge, 1 / beta - 1, beta=beta) == pytest.approx(beta, rel=1e-9)


@given(betas, st.floats(0.01, 20))
def test_ipo_sum_is_lowest_at_its_target_margin(beta: float, away: float) -> None:
    assert at_margin(ipo_sum, 1 / (2 * beta), beta=beta) == pytest.approx(0, abs=1e-12)
    assert at_margin(ipo_sum, 1 / (2 * beta) + away, beta=beta) == pytest.approx(away**2, rel=1e-6)


@pytest.mark.parametrize("loss", [dpo_norm, hinge, ipo_sum])
@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf])
def test_beta_must_be_positive(loss: Callable[..., ObjectiveOutput], beta: float) -> None:
    with pytest.raises(InputError, match=rf"loss\.beta must be {'' if math.isfinite(beta) else 'a finite number '}> 0, got {beta:g}"):
        at_margin(loss, 1.0, beta=beta)


@pytest.mark.parametrize(
    ("loss", "rate", "message"),
    [
        (cdpo, -0.1, "loss.flip_rate must be >= 0, got -0.1"),
        (cdpo, 0.6, "loss.flip_rate must be <= 0.5, got 0.6"),
        (robust_dpo, -0.1, "loss.flip_rate must be >= 0, got -0.1"),
        (robust_dpo, 0.5, "loss.flip_rate must be < 0.5, got 0.5"),
        (robust_dpo, math.nan, "loss.flip_rate must be a finite number < 0.5, got nan"),
    ],
)
def test_all_settings_out_of_range_are_named_together(loss: Callable[..., ObjectiveOutput], rate: float, message: str) -> None:
    with pytest.raises(InputError) as raised:
        at_margin(loss, 1.0, beta=0.0, flip_rate=rate)
    assert message in str(raised.value)
    assert "loss.beta must be > 0, got 0" in str(raised.value)


def test_tr_dpo_is_dpo_against_a_moving_reference() -> None:
    composed, plain = compose_loss(["loss=tr_dpo"]), compose_loss(["loss=dpo"])
    assert composed.reference == "moving"
    assert plain.reference != "moving"
    assert composed.node["_target_"] == plain.node["_target_"]
    assert composed.node["beta"] == 0.05
