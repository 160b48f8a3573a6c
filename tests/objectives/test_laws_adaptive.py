"""Laws of WPO, beta-DPO and alpha-DPO: their limits are DPO and SimPO."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_world import THREE, column, evaluated, loss_node
from omegaconf import OmegaConf
from torch import Tensor

from medvlm_dpo.objectives.adaptive import alpha_dpo, beta_dpo, wpo
from medvlm_dpo.objectives.contrastive import dpo
from medvlm_dpo.objectives.moments import FilteredGaps, GapMoments
from medvlm_dpo.objectives.reference_free import simpo
from medvlm_dpo.objectives.terms import build_objective, problems_of, weighted_loss

Four = tuple[float, float, float, float]
logps = st.floats(-50, 0)
betas = st.floats(0.01, 2)
quadruples = st.tuples(logps, logps, logps, logps)


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def four(values: Four) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return one(values[0]), one(values[1]), one(values[2]), one(values[3])


# --- wpo --------------------------------------------------------------------------------------------------------------


@given(quadruples, quadruples, betas)
def test_wpo_is_dpo_times_the_weight(pair: Four, confidence: Four, beta: float) -> None:
    weight = math.exp(min(0.0, sum(confidence[:2]) - sum(confidence[2:])))
    output, plain = wpo(*four(pair), *four(confidence), beta=beta, max_weight=1.0), dpo(*four(pair), beta=beta)
    torch.testing.assert_close(output.loss, weight * plain.loss)
    torch.testing.assert_close(output.rewards, plain.rewards)


@given(quadruples, betas, st.floats(0, 5), st.floats(0.1, 3))
def test_wpo_at_its_largest_weight_is_dpo(pair: Four, beta: float, above: float, max_weight: float) -> None:
    """Weights of at least exp(2 log max_weight + above): all above the limit."""
    score = one(abs(math.log(max_weight)) + above / 2)
    output = wpo(*four(pair), score, score, one(0), one(0), beta=beta, max_weight=max_weight)
    torch.testing.assert_close(output.loss, max_weight * dpo(*four(pair), beta=beta).loss)


@given(quadruples, betas, st.floats(-5, 5))
def test_wpo_without_limit(pair: Four, beta: float, score: float) -> None:
    """As TRL 1.16; a weight of 1 is DPO."""
    plain = dpo(*four(pair), beta=beta).loss
    for value, weight in ((score, math.exp(2 * score)), (0.0, 1.0)):
        output = wpo(*four(pair), one(value), one(value), one(0), one(0), beta=beta, max_weight=math.inf)
        torch.testing.assert_close(output.loss, weight * plain)


def test_no_limit_can_be_written_in_a_file_and_on_the_command_line() -> None:
    written = {**loss_node("wpo"), "max_weight": OmegaConf.create("max_weight: .inf").max_weight}
    for node in (written, loss_node("wpo", "loss.max_weight=inf")):
        assert node["max_weight"] == math.inf
        assert problems_of(node, batch_size=1) == []


def test_the_weight_has_no_gradient_of_its_own() -> None:
    """Its tensors are the detached ones, so the gradient is that of dpo times the weight."""
    demand = build_objective(loss_node("wpo"), batch_size=1).demand
    assert {str(name) for name in demand.gradient_tensors} == {"policy_chosen_logps", "policy_rejected_logps"}
    assert {name.base for name in demand.tensors} == {"logps", "collision_logps"}


# --- beta-dpo ---------------------------------------------------------------------------------------------------------


def three_with_draws() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return THREE.served(), {**THREE.served_facts(), "uniform_draw": column([0.3, 0.8, 0.6])}


def test_beta_dpo_at_slope_0_without_filter_is_dpo() -> None:
    objective = build_objective(loss_node("beta_dpo", "loss.beta_slope=0", "loss.gap.drop_fraction=0"), batch_size=3)
    plain = build_objective(loss_node("dpo"), batch_size=3)
    tensors, facts = three_with_draws()
    assert objective.terms[0].bound.settings["beta"] == plain.terms[0].bound.settings["beta"]
    torch.testing.assert_close(weighted_loss(evaluated(objective, tensors, facts)), weighted_loss(evaluated(plain, tensors, facts)))


@given(quadruples, betas, st.floats(-50, 50), st.floats(-50, 50), st.floats(0, 3), st.floats(0, 4))
def test_beta_dpo_is_dpo_at_the_strength_of_the_batch(
    pair: Four, beta: float, mean: float, kept_mean: float, slope: float, scale: float
) -> None:
    gaps = FilteredGaps(number(mean), number(kept_mean), one(scale))
    output = beta_dpo(*four(pair), gaps, beta=beta, beta_slope=slope)
    strength = max(0.001, beta * (1 + slope * (kept_mean - mean)))
    torch.testing.assert_close(output.loss, scale * dpo(*four(pair), beta=strength).loss, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output.rewards, dpo(*four(pair), beta=beta).rewards)


def test_the_mean_of_beta_dpo_is_over_the_kept_pairs() -> None:
    """Two of three are kept; with slope 0 their mean loss is that of dpo on these two."""
    objective = build_objective(loss_node("beta_dpo", "loss.beta_slope=0", "loss.gap.drop_fraction=0.3"), batch_size=3)
    tensors, facts = three_with_draws()
    loss = weighted_loss(evaluated(objective, tensors, facts))
    kept = loss != 0
    plain = weighted_loss(evaluated(build_objective(loss_node("dpo"), batch_size=3), tensors, facts))
    assert int(kept.sum()) == 2
    torch.testing.assert_close(loss.mean(), plain[kept].mean())


# --- alpha-dpo --------------------------------------------------------------------------------------------------------


@given(quadruples, betas, st.floats(0, 2), st.floats(-1, 1), st.floats(0.1, 2))
def test_alpha_dpo_without_scale_is_simpo(values: Four, beta: float, ratio: float, mean: float, std: float) -> None:
    chosen, rejected, reference_chosen, reference_rejected = four(values)
    gap = GapMoments(number(mean), number(std))
    output = alpha_dpo(
        chosen, rejected, chosen, rejected, reference_chosen, reference_rejected, gap, beta=beta, gamma_beta_ratio=ratio, margin_scale=0.0
    )
    plain = simpo(chosen, rejected, beta=beta, gamma_beta_ratio=ratio)
    torch.testing.assert_close(output.loss, plain.loss)
    torch.testing.assert_close(output.rewards, plain.rewards)


@given(quadruples, betas, st.floats(0, 1))
def test_a_pair_at_the_mean_gap_has_the_margin_of_simpo(values: Four, beta: float, scale: float) -> None:
    """A pair one deviation above it has `margin_scale` more."""
    chosen, rejected, reference_chosen, reference_rejected = four(values)
    gap = values[0] - values[1] - values[2] + values[3]
    for mean, extra in ((gap, 0.0), (gap - 0.5, scale)):
        moments = GapMoments(number(mean), number(0.5))
        tensors = (chosen, rejected, chosen, rejected, reference_chosen, reference_rejected)
        output = alpha_dpo(*tensors, moments, beta=beta, gamma_beta_ratio=0.6, margin_scale=scale)
        expected = simpo(chosen, rejected, beta=beta, gamma_beta_ratio=0.6 + extra)
        torch.testing.assert_close(output.loss, expected.loss, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_step_of_a_fresh_adapter_is_finite(dtype: torch.dtype) -> None:
    """All gaps are 0 and so is their spread; the loss is that of simpo."""
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (-torch.rand(4, generator=generator, dtype=dtype) for _ in range(2))
    tensors = {"policy_chosen_mean_logps": chosen.requires_grad_(True), "policy_rejected_mean_logps": rejected.requires_grad_(True)}
    tensors |= {"reference_chosen_mean_logps": chosen.detach(), "reference_rejected_mean_logps": rejected.detach()}
    facts = {"chosen_lengths": torch.ones(4)}
    loss = weighted_loss(evaluated(build_objective(loss_node("alpha_dpo"), batch_size=4), tensors, facts))
    torch.testing.assert_close(loss, simpo(chosen, rejected, beta=2.5, gamma_beta_ratio=0.6).loss)
    gradients = torch.autograd.grad(loss.sum(), [chosen, rejected])
    assert all(bool((torch.isfinite(gradient) & (gradient != 0)).all()) for gradient in gradients)


# --- ranges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "problems"),
    [
        (
            ("wpo", "loss.beta=0", "loss.max_weight=0"),
            ["loss.beta must be > 0, got 0", "loss.max_weight must be > 0 (inf for no limit), got 0"],
        ),
        (("wpo", "loss.max_weight=-inf"), ["loss.max_weight must be > 0 (inf for no limit), got -inf"]),
        (("beta_dpo", "loss.beta=-1", "loss.beta_slope=-1"), ["loss.beta must be > 0, got -1", "loss.beta_slope must be >= 0, got -1"]),
        (
            ("alpha_dpo", "loss.beta=inf", "loss.gamma_beta_ratio=-1", "loss.margin_scale=-2"),
            [
                "loss.beta must be a finite number > 0, got inf",
                "loss.gamma_beta_ratio must be >= 0, got -1",
                "loss.margin_scale must be >= 0, got -2",
            ],
        ),
    ],
)
def test_ranges_name_their_keys(overrides: tuple[str, ...], problems: list[str]) -> None:
    assert problems_of(loss_node(*overrides), batch_size=4) == problems


@pytest.mark.parametrize("loss", ["alpha_dpo", "beta_dpo"])
def test_moments_cannot_be_one_number(loss: str) -> None:
    assert problems_of({**loss_node(loss), "gap": 0.0}, batch_size=4) == [f"{loss}.gap is a named tuple; give an estimator, not a number"]
