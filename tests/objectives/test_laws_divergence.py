"""Laws of objectives/divergence.py: starting values, limits in which one loss becomes another, shapes, clamps and ranges."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.contrastive import cdpo, dpo
from medvlm_dpo.objectives.divergence import discopop, exo, exo_released, f_dpo_alpha, f_dpo_forward_kl, f_dpo_js
from medvlm_dpo.vocab import ObjectiveOutput

logps = st.floats(-50, 0)
betas = st.floats(0.01, 2)
ratios = st.floats(-10, 10)
orders = st.floats(0.05, 0.95)
LN2 = math.log(2)
CAP = 80.0


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def at_ratios(loss: Callable[..., ObjectiveOutput], chosen: float, rejected: float, **settings: float) -> ObjectiveOutput:
    return loss(one(chosen), one(rejected), one(0.0), one(0.0), **settings)


def slope(loss: Callable[..., ObjectiveOutput], chosen: float, rejected: float, **settings: float) -> tuple[float, float]:
    """Derivatives by the log-ratio of the chosen and of the rejected answer."""
    policy = (one(chosen).requires_grad_(True), one(rejected).requires_grad_(True))
    gradients = torch.autograd.grad(loss(*policy, one(0.0), one(0.0), **settings).loss.sum(), policy)
    return gradients[0].item(), gradients[1].item()


@given(logps, logps, betas, orders)
def test_where_policy_and_reference_agree(chosen: float, rejected: float, beta: float, rate: float) -> None:
    """f-DPO ln 2, exo the divergence of (1/2, 1/2) from its labels, discopop (ln 2 + 1) / 2; all rewards 0."""
    same = (one(chosen), one(rejected), one(chosen), one(rejected))
    outputs = [
        (f_dpo_js(*same, beta=beta), LN2),
        (f_dpo_forward_kl(*same, beta=beta, max_exponent=CAP), LN2),
        (f_dpo_alpha(*same, beta=beta, order=rate, max_exponent=CAP), LN2),
        (exo(*same, beta=beta, flip_rate=rate), 0.5 * math.log(0.25 / (rate * (1 - rate)))),
        (exo_released(*same, beta=beta, rejected_log_label=-10.0), 5 - LN2),
        (discopop(*same, beta=beta, temperature=rate, max_exponent=CAP), (LN2 + 1) / 2),
    ]
    for output, expected in outputs:
        assert output.loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert output.rewards["chosen"].item() == pytest.approx(0, abs=1e-12)
        assert output.rewards["rejected"].item() == pytest.approx(0, abs=1e-12)


@given(ratios, ratios, betas)
def test_f_dpo_alpha_lies_between_dpo_and_the_forward_kl(chosen: float, rejected: float, beta: float) -> None:
    low = at_ratios(f_dpo_alpha, chosen, rejected, beta=beta, order=1e-7, max_exponent=CAP)
    torch.testing.assert_close(low.loss, at_ratios(dpo, chosen, rejected, beta=beta).loss, rtol=1e-4, atol=1e-4)
    high = at_ratios(f_dpo_alpha, chosen, rejected, beta=beta, order=1 - 1e-9, max_exponent=CAP)
    torch.testing.assert_close(high.loss, at_ratios(f_dpo_forward_kl, chosen, rejected, beta=beta, max_exponent=CAP).loss)


@given(ratios, ratios, betas, orders)
def test_rewards_of_f_dpo_are_bounded_above(chosen: float, rejected: float, beta: float, order: float) -> None:
    """By beta ln 2, beta and beta / order; and the loss is the logistic loss of their difference."""
    outputs = (
        (at_ratios(f_dpo_js, chosen, rejected, beta=beta), beta * LN2),
        (at_ratios(f_dpo_forward_kl, chosen, rejected, beta=beta, max_exponent=CAP), beta),
        (at_ratios(f_dpo_alpha, chosen, rejected, beta=beta, order=order, max_exponent=CAP), beta / order),
    )
    for output, bound in outputs:
        assert max(reward.item() for reward in output.rewards.values()) <= bound * (1 + 1e-12)
        margin = output.rewards["chosen"] - output.rewards["rejected"]
        torch.testing.assert_close(output.loss, torch.nn.functional.softplus(-margin))


@given(st.floats(-10, 3), ratios, betas, st.floats(0.01, 5))
def test_a_likelier_chosen_answer_never_costs_f_dpo(chosen: float, rejected: float, beta: float, more: float) -> None:
    losses: tuple[tuple[Callable[..., ObjectiveOutput], dict[str, float]], ...] = (
        (f_dpo_js, {}),
        (f_dpo_forward_kl, {"max_exponent": CAP}),
        (f_dpo_alpha, {"order": 0.5, "max_exponent": CAP}),
    )
    for loss, settings in losses:
        before = at_ratios(loss, chosen, rejected, beta=beta, **settings).loss
        assert at_ratios(loss, chosen + more, rejected, beta=beta, **settings).loss <= before
        assert at_ratios(loss, chosen, rejected - more, beta=beta, **settings).loss <= before


@pytest.mark.parametrize("loss", [f_dpo_forward_kl, f_dpo_alpha])
def test_beyond_the_largest_exponent_f_dpo_is_flat(loss: Callable[..., ObjectiveOutput]) -> None:
    """The unclamped twin would be infinite: exp(1000), and exp(500) at order 1/2, in float32."""
    settings = {"beta": 0.1, "max_exponent": CAP} | ({"order": 0.5} if loss is f_dpo_alpha else {})
    policy = torch.tensor([-1000.0], requires_grad=True)
    zero = torch.tensor([0.0])
    output = loss(policy, zero, zero, zero, **settings)
    (gradient,) = torch.autograd.grad(output.loss.sum(), policy)
    assert bool(torch.isfinite(output.loss))
    assert output.loss.item() > 1e30
    assert gradient.item() == 0


@given(betas, st.floats(0.01, 0.99), st.floats(-5, 5))
def test_exo_is_lowest_where_the_policy_has_the_labels(beta: float, rate: float, away: float) -> None:
    """Its gradient and value are 0 at a scaled margin of log((1 - rate) / rate); elsewhere q (1 - q) times the distance."""
    best = math.log((1 - rate) / rate)
    assert at_ratios(exo, best / beta, 0.0, beta=beta, flip_rate=rate).loss.item() == pytest.approx(0, abs=1e-9)
    scaled = best + away
    q = 1 / (1 + math.exp(-scaled))
    wanted = beta * q * (1 - q) * away
    chosen, rejected = slope(exo, scaled / beta, 0.0, beta=beta, flip_rate=rate)
    assert chosen == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert rejected == pytest.approx(-wanted, rel=1e-6, abs=1e-9)


@given(ratios, betas, st.floats(0.01, 0.5))
def test_exo_and_cdpo_pull_to_the_same_margin(margin: float, beta: float, rate: float) -> None:
    """They are the two directions of one divergence: below the best margin both slopes are negative, above both positive."""
    excess = beta * margin - math.log((1 - rate) / rate)
    slopes = [slope(loss, margin, 0.0, beta=beta, flip_rate=rate)[0] for loss in (exo, cdpo)]
    assert all(found * excess >= -1e-9 for found in slopes)


@given(ratios, ratios, betas, st.floats(-20, -0.1))
def test_exo_released_is_exo_with_labels_that_do_not_sum_to_one(chosen: float, rejected: float, beta: float, label: float) -> None:
    """Normalised, its labels 1 and exp(label) are those of a flip rate; the two losses differ by the log of their sum."""
    total = 1 + math.exp(label)
    released = at_ratios(exo_released, chosen, rejected, beta=beta, rejected_log_label=label).loss
    normalised = at_ratios(exo, chosen, rejected, beta=beta, flip_rate=math.exp(label) / total).loss
    torch.testing.assert_close(released, normalised - math.log(total))


@given(st.floats(2, 20), betas)
def test_discopop_is_logistic_on_wrong_pairs_and_exponential_on_right_ones(size: float, beta: float) -> None:
    settings = {"beta": beta, "temperature": 0.01 * beta, "max_exponent": CAP}
    right = at_ratios(discopop, size, 0.0, **settings).loss.item()
    assert right == pytest.approx(math.exp(-beta * size), rel=1e-9)
    wrong = at_ratios(discopop, -size, 0.0, **settings).loss.item()
    assert wrong == pytest.approx(at_ratios(dpo, -size, 0.0, beta=beta).loss.item(), rel=1e-9)


def test_discopop_rises_with_the_margin_at_the_start() -> None:
    """The slope by the scaled margin is (1 - ln 2) / (4 temperature) - 3/4: 0.784 at a temperature of 0.05, negative above 0.1023."""
    for temperature in (0.05, 0.2):
        chosen, _ = slope(discopop, 0.0, 0.0, beta=0.05, temperature=temperature, max_exponent=CAP)
        assert chosen / 0.05 == pytest.approx((1 - LN2) / (4 * temperature) - 0.75, rel=1e-9)
        assert (chosen > 0) == (temperature == 0.05)


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        (f_dpo_js, {"beta": 0.0}, "loss.beta must be > 0, got 0"),
        (f_dpo_forward_kl, {"beta": -1.0, "max_exponent": 80.0}, "loss.beta must be > 0, got -1"),
        (f_dpo_forward_kl, {"beta": 0.1, "max_exponent": math.inf}, "loss.max_exponent must be a finite number > 0, got inf"),
        (f_dpo_alpha, {"beta": 0.1, "order": 0.0, "max_exponent": 80.0}, "loss.order must be > 0, got 0"),
        (f_dpo_alpha, {"beta": 0.1, "order": 1.0, "max_exponent": 80.0}, "loss.order must be < 1, got 1"),
        (exo, {"beta": 0.1, "flip_rate": 0.0}, "loss.flip_rate must be > 0, got 0"),
        (exo, {"beta": 0.1, "flip_rate": 1.0}, "loss.flip_rate must be < 1, got 1"),
        (exo_released, {"beta": 0.1, "rejected_log_label": 0.0}, "loss.rejected_log_label must be < 0, got 0"),
        (exo_released, {"beta": 0.1, "rejected_log_label": -math.inf}, "loss.rejected_log_label must be a finite number < 0, got -inf"),
        (discopop, {"beta": 0.05, "temperature": 0.0, "max_exponent": 80.0}, "loss.temperature must be > 0, got 0"),
        (discopop, {"beta": 0.05, "temperature": 0.05, "max_exponent": 0.0}, "loss.max_exponent must be > 0, got 0"),
    ],
)
def test_a_setting_out_of_range_is_named(loss: Callable[..., ObjectiveOutput], settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError) as raised:
        at_ratios(loss, 0.0, 0.0, **settings)
    assert message in str(raised.value)
