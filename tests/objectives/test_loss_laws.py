"""Laws that hold for all numbers, and the contract every loss file keeps: each is found by a glob, so a new loss is tested at once."""

import ast
import inspect
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_world import loss_node
from torch import Tensor
from torch.nn.functional import softplus

from medvlm_dpo.objectives.contrastive import dpo, ipo
from medvlm_dpo.objectives.kto import kto
from medvlm_dpo.objectives.reference_free import simpo
from medvlm_dpo.objectives.supervised import sft
from medvlm_dpo.objectives.terms import Objective, build_objective, problems_of, weighted_loss
from medvlm_dpo.vocab import TOKEN_FACTS, ObjectiveOutput

LOSSES = sorted((Path(__file__).parents[2] / "conf" / "loss").glob("*.yaml"))
NUM_EXAMPLES, NUM_TOKENS = 4, 5

logps = st.floats(-50, 0)
betas = st.floats(0.01, 2)


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


@pytest.fixture(params=LOSSES, ids=lambda path: path.stem)
def objective(request: pytest.FixtureRequest) -> Objective:
    return build_objective(loss_node(request.param.stem), batch_size=NUM_EXAMPLES)


def made_up(objective: Objective, *, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random values of every tensor asked for, in (-scale, 0), and every answer present."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name in sorted(objective.demand.tensors):
        shape = (NUM_EXAMPLES, NUM_TOKENS) if name.reduction == "token_" else (NUM_EXAMPLES,)
        value = -scale * torch.rand(shape, generator=generator, dtype=dtype)
        tensors[str(name)] = value.requires_grad_(name.model == "policy")
    facts = {name: torch.ones((NUM_EXAMPLES, NUM_TOKENS) if name in TOKEN_FACTS else NUM_EXAMPLES) for name in objective.demand.facts}
    facts |= {name: torch.full((NUM_EXAMPLES,), float(NUM_TOKENS)) for name in facts if name.endswith("_lengths")}
    facts |= {name: torch.rand(NUM_EXAMPLES, generator=generator) for name in facts if name == "uniform_draw"}
    return tensors, facts


def total_loss(objective: Objective, tensors: Mapping[str, Tensor], facts: Mapping[str, Tensor]) -> Tensor:
    statistics, _ = objective.estimate(tensors, facts, {})
    return weighted_loss(objective.evaluate(tensors, facts, statistics, torch.arange(NUM_EXAMPLES)))


# --- the contract of every loss file ----------------------------------------------------------------------------------


def test_the_glob_finds_the_losses() -> None:
    assert {"sft", "dpo", "ipo", "kto", "simpo"} <= {path.stem for path in LOSSES}


@pytest.mark.parametrize("path", LOSSES, ids=lambda path: path.stem)
def test_every_loss_file_is_in_order_and_every_wrong_key_is_noticed(path: Path) -> None:
    node = loss_node(path.stem)
    assert problems_of(node, batch_size=NUM_EXAMPLES) == []
    if "terms" not in node:  # of a sum, which may have settings of its own, tests/config/test_shared.py
        assert any("loss.betta" in problem for problem in problems_of({**node, "betta": 0.125}, batch_size=NUM_EXAMPLES))


def test_one_loss_per_example_and_rewards_without_gradient(objective: Objective) -> None:
    tensors, facts = made_up(objective)
    statistics, _ = objective.estimate(tensors, facts, {})
    for output in objective.evaluate(tensors, facts, statistics, torch.arange(NUM_EXAMPLES)):
        assert output.output.loss.shape == (NUM_EXAMPLES,)
        assert output.output.loss.requires_grad
        assert all(reward.shape == (NUM_EXAMPLES,) and not reward.requires_grad for reward in output.output.rewards.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e2, 1e4])
def test_values_and_gradients_are_finite(objective: Objective, scale: float, dtype: torch.dtype) -> None:
    tensors, facts = made_up(objective, scale=scale, dtype=dtype)
    loss = total_loss(objective, tensors, facts)
    gradients = torch.autograd.grad(loss.sum(), [value for value in tensors.values() if value.requires_grad])
    assert loss.dtype == dtype
    assert all(bool(torch.isfinite(value).all()) for value in (loss, *gradients))


def test_gradient_reaches_every_policy_tensor_and_nothing_else(objective: Objective) -> None:
    tensors, facts = made_up(objective)
    wanted = {str(name) for name in objective.demand.gradient_tensors}
    served = {name: value.detach().requires_grad_(True) for name, value in tensors.items()}
    statistics, _ = objective.estimate(served, facts, {})
    assert all(not part.requires_grad for value in statistics.values() for part in (value if isinstance(value, tuple) else (value,)))
    loss = weighted_loss(
        objective.evaluate({**served, **{n: t for n, t in tensors.items() if n not in wanted}}, facts, statistics, torch.arange(4))
    )
    gradients = torch.autograd.grad(loss.sum(), [served[name] for name in sorted(wanted)])
    weighs = loss.detach() != 0  # a pair that a statistic drops has neither loss nor gradient
    assert bool(weighs.any())
    assert all(bool((gradient[weighs] != 0).all()) for gradient in gradients)


def test_gradient_is_the_derivative(objective: Objective) -> None:
    """Compared with finite differences, away from kinks: statistics stay fixed, as they carry no gradient."""
    tensors, facts = made_up(objective)
    statistics, _ = objective.estimate(tensors, facts, {})
    names = sorted(str(name) for name in objective.demand.gradient_tensors)

    def loss(*values: Tensor) -> Tensor:
        served = {**tensors, **dict(zip(names, values, strict=True))}
        return weighted_loss(objective.evaluate(served, facts, statistics, torch.arange(NUM_EXAMPLES)))

    assert torch.autograd.gradcheck(loss, [tensors[name] for name in names])


def test_rows_do_not_couple(objective: Objective) -> None:
    tensors, facts = made_up(objective)
    loss = total_loss(objective, tensors, facts)
    for name in objective.demand.gradient_tensors:
        for row in range(NUM_EXAMPLES):
            (gradient,) = torch.autograd.grad(loss[row], tensors[str(name)], retain_graph=True)
            others = [other for other in range(NUM_EXAMPLES) if other != row]
            assert bool((gradient[others] == 0).all())


def test_micro_batches_give_the_loss_of_the_whole(objective: Objective) -> None:
    tensors, facts = made_up(objective)
    statistics, _ = objective.estimate(tensors, facts, {})
    whole = weighted_loss(objective.evaluate(tensors, facts, statistics, torch.arange(NUM_EXAMPLES)))
    for rows in (torch.tensor([2, 0]), torch.tensor([3]), torch.tensor([1])):
        part = objective.evaluate({n: t[rows] for n, t in tensors.items()}, {n: t[rows] for n, t in facts.items()}, statistics, rows)
        torch.testing.assert_close(weighted_loss(part), whole[rows], rtol=1e-12, atol=0)


def test_bodies_never_cut_the_gradient(objective: Objective) -> None:
    """Where gradient stops stands in the signature; a body that cuts it would hide it from review and from the packer."""
    for term in objective.terms:
        for function in (term.bound.function, *(estimator.function for estimator in term.bound.estimators.values())):
            names = {node.attr for node in ast.walk(ast.parse(inspect.getsource(function))) if isinstance(node, ast.Attribute)}
            assert not names & {"detach", "detach_", "no_grad", "item", "data", "inference_mode"}, function.__name__


def test_half_precision_is_refused(objective: Objective) -> None:
    tensors, facts = made_up(objective)
    served = {name: value.detach().bfloat16() for name, value in tensors.items()}
    statistics, _ = objective.estimate(served, facts, {})
    with pytest.raises(TypeError, match=r"must be float32 or float64, got torch\.bfloat16"):
        objective.evaluate(served, facts, statistics, torch.arange(NUM_EXAMPLES))


# --- identities at the start of training -----------------------------------------------------------------------------


@given(logps, logps, betas)
def test_where_policy_and_reference_agree(chosen: float, rejected: float, beta: float) -> None:
    """Log-ratios are 0: dpo ln 2, ipo 1 / (4 beta^2), kto 1/2; all rewards 0."""
    pair = (one(chosen), one(rejected))
    assert dpo(*pair, *pair, beta=beta).loss.item() == pytest.approx(math.log(2), rel=1e-12)
    assert ipo(*pair, *pair, beta=beta).loss.item() == pytest.approx(1 / (4 * beta**2), rel=1e-12)
    output = kto_of(*pair, *pair, beta=beta)
    assert output.loss.item() == pytest.approx(0.5, rel=1e-12)
    assert output.rewards["chosen"].item() == output.rewards["rejected"].item() == 0


@given(logps, betas, st.floats(0, 2))
def test_simpo_where_both_answers_are_equally_likely(logp: float, beta: float, ratio: float) -> None:
    output = simpo(one(logp), one(logp), beta=beta, gamma_beta_ratio=ratio)
    torch.testing.assert_close(output.loss, softplus(one(beta * ratio)))


# --- laws -------------------------------------------------------------------------------------------------------------


def kto_of(
    pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, *, beta: float, z0: float = 0.0, present: tuple[float, float] = (1, 1)
) -> ObjectiveOutput:
    chosen, rejected = (torch.full_like(pc, value) for value in present)
    z0_tensor = torch.tensor(z0, dtype=pc.dtype)
    return kto(pc, pr, rc, rr, chosen, rejected, z0_tensor, beta=beta, desirable_weight=1.0, undesirable_weight=1.0)


@given(logps, logps, logps, logps, betas)
def test_swapping_the_pair_turns_the_margin(pc: float, pr: float, rc: float, rr: float, beta: float) -> None:
    """Dpo and simpo without target: loss(swapped) - loss is the margin. Ipo: (m + t)^2 - (m - t)^2 = 4 m t with t = 1 / (2 beta)."""
    forward = dpo(one(pc), one(pr), one(rc), one(rr), beta=beta)
    swapped = dpo(one(pr), one(pc), one(rr), one(rc), beta=beta)
    torch.testing.assert_close(swapped.loss - forward.loss, forward.rewards["chosen"] - forward.rewards["rejected"])
    forward = simpo(one(pc), one(pr), beta=beta, gamma_beta_ratio=0.0)
    swapped = simpo(one(pr), one(pc), beta=beta, gamma_beta_ratio=0.0)
    torch.testing.assert_close(swapped.loss - forward.loss, forward.rewards["chosen"] - forward.rewards["rejected"])
    forward = ipo(one(pc), one(pr), one(rc), one(rr), beta=beta)
    swapped = ipo(one(pr), one(pc), one(rr), one(rc), beta=beta)
    margin = (forward.rewards["chosen"] - forward.rewards["rejected"]) / beta
    torch.testing.assert_close(swapped.loss - forward.loss, 4 * margin / (2 * beta), rtol=1e-6, atol=1e-6)


@given(logps, logps, logps, logps, betas, st.floats(0.01, 10))
def test_a_likelier_chosen_answer_never_costs(pc: float, pr: float, rc: float, rr: float, beta: float, more: float) -> None:
    """A likelier chosen and a less likely rejected answer never raise dpo, kto, simpo and sft."""
    rest = (one(pr), one(rc), one(rr))
    for loss in (dpo, kto_of):
        assert loss(one(pc + more), *rest, beta=beta).loss <= loss(one(pc), *rest, beta=beta).loss
        assert loss(one(pc), one(pr - more), one(rc), one(rr), beta=beta).loss <= loss(one(pc), *rest, beta=beta).loss
    before = simpo(one(pc), one(pr), beta=beta, gamma_beta_ratio=0.5).loss
    assert simpo(one(pc + more), one(pr), beta=beta, gamma_beta_ratio=0.5).loss <= before
    assert simpo(one(pc), one(pr - more), beta=beta, gamma_beta_ratio=0.5).loss <= before
    assert sft(one(pc + more)).loss < sft(one(pc)).loss


@given(st.floats(-1, 1), st.floats(-1, 1), betas)
def test_ipo_is_lowest_at_its_target_margin(chosen: float, rejected: float, beta: float) -> None:
    zero = one(0.0)
    assert ipo(one(1 / (2 * beta)), zero, zero, zero, beta=beta).loss.item() == pytest.approx(0, abs=1e-12)
    loss = ipo(one(chosen), one(rejected), zero, zero, beta=beta).loss.item()
    assert loss == pytest.approx((chosen - rejected - 1 / (2 * beta)) ** 2, rel=1e-9, abs=1e-12)


@given(logps, logps, logps, logps, betas, st.floats(0, 20))
def test_kto_shares_an_examples_weight_between_its_answers(pc: float, pr: float, rc: float, rr: float, beta: float, z0: float) -> None:
    values = (one(pc), one(pr), one(rc), one(rr))
    both, desirable, undesirable = (kto_of(*values, beta=beta, z0=z0, present=present).loss for present in ((1, 1), (1, 0), (0, 1)))
    torch.testing.assert_close(both, (desirable + undesirable) / 2)
    assert 0 <= both.item() <= 1


@given(logps, logps, betas, st.floats(0, 5), st.floats(-20, 20))
def test_kto_reads_the_distance_to_z0(chosen: float, rejected: float, beta: float, z0: float, shift: float) -> None:
    """Moving both log-ratios and z0 by the same amount changes nothing."""
    zero = one(0.0)
    moved = kto_of(one(chosen + shift), one(rejected + shift), zero, zero, beta=beta, z0=z0 + shift)
    torch.testing.assert_close(moved.loss, kto_of(one(chosen), one(rejected), zero, zero, beta=beta, z0=z0).loss)


@pytest.mark.parametrize(("present", "ratio", "limit"), [((1, 0), 1e4, 0), ((1, 0), -1e4, 1.2), ((0, 1), 1e4, 0.8), ((0, 1), -1e4, 0)])
def test_kto_limits(present: tuple[float, float], ratio: float, limit: float) -> None:
    """A desirable answer costs nothing when far likelier than under the reference and at most its weight; an undesirable one mirrored."""
    zero, shares = one(0.0), (one(present[0]), one(present[1]))
    z0 = torch.tensor(0.3, dtype=torch.float64)
    output = kto(one(ratio), one(ratio), zero, zero, *shares, z0, beta=0.1, desirable_weight=1.2, undesirable_weight=0.8)
    assert output.loss.item() == pytest.approx(limit, abs=1e-12)


def test_an_absent_answer_has_no_part_in_kto() -> None:
    """Whatever stands in the row of an absent answer: it changes neither the value nor a gradient."""
    for present, gone in (((1, 0), 1), ((0, 1), 0)):
        for value in (0.0, -123.0):
            policy = [one(-3.0).requires_grad_(True), one(-4.0).requires_grad_(True)]
            policy[gone] = one(value).requires_grad_(True)
            loss = kto_of(policy[0], policy[1], one(-3.5), one(-4.5), beta=0.1, present=present).loss
            gradients = torch.autograd.grad(loss.sum(), policy)
            assert gradients[gone].item() == 0
            assert gradients[1 - gone].item() != 0
            assert loss.item() == pytest.approx(1 / (1 + math.exp(0.05 if present[0] else -0.05)), rel=1e-12)


@settings(max_examples=25)
@given(logps, logps, logps, logps, st.floats(0.05, 1))
def test_scaling_beta_scales_the_rewards(pc: float, pr: float, rc: float, rr: float, beta: float) -> None:
    for loss in (dpo, ipo, kto_of):
        once, twice = (loss(one(pc), one(pr), one(rc), one(rr), beta=factor * beta).rewards for factor in (1, 2))
        torch.testing.assert_close(twice["chosen"], 2 * once["chosen"])
        torch.testing.assert_close(twice["rejected"], 2 * once["rejected"])
