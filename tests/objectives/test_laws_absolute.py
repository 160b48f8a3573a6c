"""Laws of objectives/absolute.py: starting values, where each answer is drawn to, limits in which one loss becomes another, and ranges."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_world import A, B
from torch import Tensor

from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.absolute import apo_down, apo_zero, cal_dpo, dpop, nca, sppo_hard
from medvlm_dpo.objectives.contrastive import dpo
from medvlm_dpo.vocab import ObjectiveOutput

logps = st.floats(-50, 0)
betas = st.floats(0.01, 2)
ratios = st.floats(-20, 20)
steps = st.floats(0.01, 10)
LN2 = math.log(2)


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def at_ratios(loss: Callable[..., ObjectiveOutput], chosen: float, rejected: float, **settings: float) -> ObjectiveOutput:
    return loss(one(chosen), one(rejected), one(0.0), one(0.0), **settings)


def value(loss: Callable[..., ObjectiveOutput], chosen: float, rejected: float, **settings: float) -> float:
    return at_ratios(loss, chosen, rejected, **settings).loss.item()


def slope(loss: Callable[..., ObjectiveOutput], chosen: float, rejected: float, **settings: float) -> tuple[float, float]:
    """Derivatives by the log-ratio of the chosen and of the rejected answer."""
    policy = (one(chosen).requires_grad_(True), one(rejected).requires_grad_(True))
    gradients = torch.autograd.grad(loss(*policy, one(0.0), one(0.0), **settings).loss.sum(), policy)
    return gradients[0].item(), gradients[1].item()


@given(logps, logps, betas, st.floats(0, 3))
def test_where_policy_and_reference_agree(chosen: float, rejected: float, beta: float, weight: float) -> None:
    """Log-ratios are 0: both apo 1, nca 2 ln 2, sppo_hard 1 / (2 beta^2), cal_dpo ln 2 and weight times that, dpop ln 2; rewards 0."""
    same = (one(chosen), one(rejected), one(chosen), one(rejected))
    squares = 1 / (2 * beta**2)
    outputs = [
        (apo_zero(*same, beta=beta), 1.0),
        (apo_down(*same, beta=beta), 1.0),
        (nca(*same, beta=beta), 2 * LN2),
        (sppo_hard(*same, beta=beta), squares),
        (cal_dpo(*same, beta=beta, calibration_weight=weight), LN2 + weight * squares),
        (dpop(*same, beta=beta, penalty=weight), LN2),
    ]
    for output, expected in outputs:
        assert output.loss.item() == pytest.approx(expected, rel=1e-12)
        assert output.rewards["chosen"].item() == output.rewards["rejected"].item() == 0


@given(ratios, ratios, betas, st.floats(-20, 20))
def test_the_level_counts_and_not_the_margin_alone(chosen: float, rejected: float, beta: float, shift: float) -> None:
    """Moving both log-ratios together changes these losses by what their formula says: the squares of sppo_hard in closed form."""
    before, after = (value(sppo_hard, chosen + move, rejected + move, beta=beta) for move in (0.0, shift))
    assert after - before == pytest.approx(2 * shift * (chosen + rejected) + 2 * shift**2, rel=1e-6, abs=1e-6)


@given(ratios, ratios, betas, steps)
def test_apo_zero_pushes_the_chosen_up_and_the_rejected_down(chosen: float, rejected: float, beta: float, step: float) -> None:
    before = value(apo_zero, chosen, rejected, beta=beta)
    assert 0 <= before <= 2
    assert value(apo_zero, chosen + step, rejected, beta=beta) <= before
    assert value(apo_zero, chosen, rejected - step, beta=beta) <= before


@given(ratios, betas, steps)
def test_apo_down_pushes_both_down_at_a_fixed_margin(level: float, beta: float, step: float) -> None:
    """At equal margins lower is cheaper, and a less likely rejected answer never costs."""
    before = value(apo_down, level, 0.0, beta=beta)
    assert 0 <= before <= 2
    assert value(apo_down, level - step, -step, beta=beta) <= before
    assert value(apo_down, level, -step, beta=beta) <= before


@given(betas)
def test_the_two_kinds_of_apo_start_in_opposite_directions(beta: float) -> None:
    """At the start apo_zero moves the answers by -beta/4 and beta/4; in apo_down the chosen one's pulls cancel, the rejected one falls."""
    assert slope(apo_zero, 0.0, 0.0, beta=beta) == pytest.approx((-beta / 4, beta / 4), rel=1e-12)
    assert slope(apo_down, 0.0, 0.0, beta=beta) == pytest.approx((0.0, beta / 4), rel=1e-12, abs=1e-15)


@given(ratios, betas, st.floats(0.01, 5))
def test_nca_draws_the_chosen_reward_to_ln_2(rejected: float, beta: float, away: float) -> None:
    best = value(nca, LN2 / beta, rejected, beta=beta)
    assert all(value(nca, (LN2 + step) / beta, rejected, beta=beta) > best for step in (away, -away))
    assert value(nca, 0.0, rejected - away, beta=beta) < value(nca, 0.0, rejected, beta=beta) + 1e-12


@given(betas, ratios, ratios)
def test_squares_vanish_at_their_targets(beta: float, chosen: float, rejected: float) -> None:
    target = 1 / (2 * beta)
    assert value(sppo_hard, target, -target, beta=beta) == pytest.approx(0, abs=1e-12)
    assert value(sppo_hard, target + chosen, rejected - target, beta=beta) == pytest.approx(chosen**2 + rejected**2, rel=1e-6, abs=1e-9)
    assert at_ratios(sppo_hard, target, -target, beta=beta).rewards["chosen"].item() == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize(("batch", "expected"), [(A, 18.125), (B, 15.665)])
def test_the_released_sppo_is_half_of_ours(batch: object, expected: float) -> None:
    """Its code halves the sum; the numbers are those of its own function at win rates 1 and 0."""
    chosen, rejected = (1.0, -0.5) if batch is A else (1.3, -0.8)
    assert value(sppo_hard, chosen, rejected, beta=0.1) / 2 == pytest.approx(expected, abs=1e-6)


@given(ratios, ratios, betas, st.floats(0, 3))
def test_cal_dpo_is_dpo_at_beta_one_and_the_squares_of_sppo(chosen: float, rejected: float, beta: float, weight: float) -> None:
    wanted = value(dpo, chosen, rejected, beta=1.0) + weight * value(sppo_hard, chosen, rejected, beta=beta)
    assert value(cal_dpo, chosen, rejected, beta=beta, calibration_weight=weight) == pytest.approx(wanted, rel=1e-9)


@given(ratios, ratios, betas, st.floats(0, 60))
def test_dpop_is_dpo_unless_the_chosen_answer_falls(chosen: float, rejected: float, beta: float, penalty: float) -> None:
    """Without penalty, or with a likelier chosen answer, it is dpo; else dpo with the chosen log-ratio times 1 + penalty."""
    torch.testing.assert_close(at_ratios(dpop, chosen, rejected, beta=beta, penalty=0.0), at_ratios(dpo, chosen, rejected, beta=beta))
    factor = 1 + penalty if chosen < 0 else 1.0
    wanted = at_ratios(dpo, factor * chosen, rejected, beta=beta)
    torch.testing.assert_close(at_ratios(dpop, chosen, rejected, beta=beta, penalty=penalty), wanted)


@pytest.mark.parametrize("loss", [apo_zero, apo_down, nca, sppo_hard])
@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_beta_must_be_positive(loss: Callable[..., ObjectiveOutput], beta: float) -> None:
    with pytest.raises(InputError, match=rf"loss\.beta must be {'' if math.isfinite(beta) else 'a finite number '}> 0, got {beta:g}"):
        at_ratios(loss, 0.0, 0.0, beta=beta)


@pytest.mark.parametrize(("loss", "key"), [(cal_dpo, "calibration_weight"), (dpop, "penalty")])
def test_all_settings_out_of_range_are_named_together(loss: Callable[..., ObjectiveOutput], key: str) -> None:
    with pytest.raises(InputError) as raised:
        at_ratios(loss, 0.0, 0.0, **{"beta": 0.0, key: -1.0})
    assert "loss.beta must be > 0, got 0" in str(raised.value)
    assert f"loss.{key} must be >= 0, got -1" in str(raised.value)
