"""Laws of the losses on the corrupted image and on the model's own tokens, and of the sums of them, for all numbers."""

import math
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_world import B, Golden, compute, loss_node
from torch import Tensor
from torch.nn.functional import softplus

from medvlm_dpo.config.catalogue import compose_loss
from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.contrastive import dpo
from medvlm_dpo.objectives.image import anchor, copo, mmedpo, v_dpo
from medvlm_dpo.objectives.image_tokens import hallucination_dpo, top_wrong_copo, top_wrong_dpo
from medvlm_dpo.objectives.terms import build_objective, problems_of
from medvlm_dpo.vocab import ObjectiveOutput

logps = st.floats(-50, 0)
betas = st.floats(0.01, 2)
weights = st.floats(0, 5)
guidances = st.floats(0.1, 5)
LN2 = math.log(2)
# Losses that are minus log sigmoid of the difference of two log-ratios, in the order policy, policy, reference, reference.
TWO_SIDED = (dpo, copo, hallucination_dpo, top_wrong_dpo, top_wrong_copo)


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def mmedpo_of(
    pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, *, beta: float, pair_weight: float = 1.0, weight_scale: float = 1.0
) -> ObjectiveOutput:
    return mmedpo(pc, pr, rc, rr, one(pair_weight), torch.tensor(weight_scale, dtype=torch.float64), beta=beta)


# --- the same logistic loss of two log-ratios, whichever they are ------------------------------------------------------


@pytest.mark.parametrize("loss", [*TWO_SIDED, mmedpo_of], ids=lambda loss: loss.__name__)
@given(pc=logps, po=logps, rc=logps, ro=logps, beta=betas)
def test_the_value_is_that_of_the_margin(
    loss: Callable[..., ObjectiveOutput], pc: float, po: float, rc: float, ro: float, beta: float
) -> None:
    margin = one(beta * ((pc - rc) - (po - ro)))
    torch.testing.assert_close(loss(one(pc), one(po), one(rc), one(ro), beta=beta).loss, softplus(-margin))


@pytest.mark.parametrize("loss", [*TWO_SIDED, mmedpo_of], ids=lambda loss: loss.__name__)
@given(pc=logps, po=logps, rc=logps, ro=logps, beta=betas)
def test_exchanging_the_sides_turns_the_margin(
    loss: Callable[..., ObjectiveOutput], pc: float, po: float, rc: float, ro: float, beta: float
) -> None:
    forward = loss(one(pc), one(po), one(rc), one(ro), beta=beta).loss
    swapped = loss(one(po), one(pc), one(ro), one(rc), beta=beta).loss
    torch.testing.assert_close(swapped - forward, one(beta * ((pc - rc) - (po - ro))), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", [*TWO_SIDED, mmedpo_of], ids=lambda loss: loss.__name__)
@given(chosen=logps, other=logps, beta=betas)
def test_ln_2_where_policy_and_reference_agree(loss: Callable[..., ObjectiveOutput], chosen: float, other: float, beta: float) -> None:
    output = loss(one(chosen), one(other), one(chosen), one(other), beta=beta)
    assert output.loss.item() == pytest.approx(LN2, rel=1e-12)
    assert all(reward.item() == 0 for reward in output.rewards.values())


@pytest.mark.parametrize("loss", [*TWO_SIDED, mmedpo_of], ids=lambda loss: loss.__name__)
@given(pc=logps, po=logps, rc=logps, ro=logps, more=st.floats(0.01, 10))
def test_likelier_on_its_own_side_never_costs(
    loss: Callable[..., ObjectiveOutput], pc: float, po: float, rc: float, ro: float, more: float
) -> None:
    before = loss(one(pc), one(po), one(rc), one(ro), beta=0.1).loss
    assert loss(one(pc + more), one(po), one(rc), one(ro), beta=0.1).loss <= before
    assert loss(one(pc), one(po - more), one(rc), one(ro), beta=0.1).loss <= before


def test_rewards_name_views_and_a_picture_is_never_called_rejected() -> None:
    values = [one(value) for value in (-1.0, -2.0, -3.0, -5.0)]
    views = {loss.__name__: set(loss(*values, beta=0.1).rewards) for loss in (*TWO_SIDED, mmedpo_of)}
    assert views == {
        "dpo": {"chosen", "rejected"},
        "copo": {"chosen", "chosen_corrupt"},
        "hallucination_dpo": {"chosen"},  # no view is made of the model's own tokens
        "top_wrong_dpo": {"chosen", "rejected"},
        "top_wrong_copo": {"chosen", "chosen_corrupt"},
        "mmedpo_of": {"chosen", "rejected_corrupt"},
    }


# --- copo, anchor, mdpo ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["copo", "anchor", "perception", "perception_k3"])
def test_losses_of_the_chosen_answer_read_no_rejected_one(name: str) -> None:
    objective = build_objective(loss_node(name), batch_size=2)
    assert objective.demand.required_answers == {"chosen"}
    assert not any("rejected" in parameter for term in objective.terms for parameter in term.bound.arguments)


@given(logps, logps, betas, st.floats(0, 3))
def test_anchor(policy: float, reference: float, beta: float, margin: float) -> None:
    """The margin is subtracted from the scaled reward, so that beta does not scale it."""
    output = anchor(one(policy), one(reference), beta=beta, margin=margin)
    torch.testing.assert_close(output.loss, softplus(one(margin - beta * (policy - reference))))
    assert output.loss >= anchor(one(policy), one(reference), beta=beta, margin=0.0).loss
    assert anchor(one(policy), one(policy), beta=beta, margin=0.0).loss.item() == pytest.approx(LN2, rel=1e-12)


AT_START = {
    "copo": LN2,
    "anchor": LN2,
    "mdpo": 3 * LN2,
    "mdpo_released": 3 * LN2,
    "mmedpo": 0.6 * LN2,
    "mmedpo_released": 0.6 * LN2,
    "povid": LN2,
    "opa_dpo": 2.2 * LN2,
    "re_align_rdpo": 2 * LN2,
    "re_align_rdpo_released": 2 * LN2,
}


@pytest.mark.parametrize(("name", "expected"), AT_START.items())
def test_at_the_start_of_training(name: str, expected: float) -> None:
    """Policy and reference give the same values: every margin is 0, and what is left is ln 2 times the sum of the weights."""
    objective = build_objective(loss_node(name), batch_size=2)
    policy = {str(tensor): [-3.0 - place] for place, tensor in enumerate(sorted(objective.demand.gradient_tensors))}
    twins = {f"reference_{key.removeprefix('policy_')}": value for key, value in policy.items()}
    assert compute(Golden(name, B, [], tensors={**policy, **twins})).loss.item() == pytest.approx(expected, rel=1e-12)


def mdpo_with(tensors: Mapping[str, Sequence[float]]) -> float:
    return compute(Golden("mdpo", B, [], tensors=tensors)).loss.item()


def test_the_released_bug_is_detected_on_set_b() -> None:
    """1.813093 is mDPO; 1.817557 comes out where an overridden method shows the rejected answer instead of the corrupted image."""
    served = {name: value.tolist() for name, value in B.served().items()}
    confused = {
        f"{model}_chosen_corrupt_logps": served[f"{model}_rejected_logps"] for model in ("policy", "reference")
    }  # what the released image term reads
    assert mdpo_with({}) == pytest.approx(1.813093, abs=1e-6)
    assert mdpo_with(confused) == pytest.approx(1.817557, abs=1e-6)
    assert compute(Golden("mdpo_released", B, [])).loss.item() == pytest.approx(mdpo_with(confused), rel=1e-12)


def test_copo_on_the_true_image_would_be_seen_on_set_b() -> None:
    """Computed with the clean image on both sides copo is ln 2 and carries no gradient; on set B it is .589185."""
    served = {name: value.tolist() for name, value in B.served().items()}
    clean = {f"{model}_chosen_corrupt_logps": served[f"{model}_chosen_logps"] for model in ("policy", "reference")}
    assert compute(Golden("copo", B, [])).loss.item() == pytest.approx(0.589185, abs=1e-6)
    assert compute(Golden("copo", B, [], tensors=clean)).loss.item() == pytest.approx(LN2, rel=1e-12)
    assert mdpo_with(clean) - mdpo_with({}) == pytest.approx(LN2 - 0.589185, abs=1e-6)


def test_gradient_flows_through_both_images() -> None:
    gradients = compute(Golden("mdpo", B, [])).gradients
    assert gradients["policy_chosen_corrupt_logps"].item() > 0 > gradients["policy_chosen_logps"].item()


# --- mmedpo ------------------------------------------------------------------------------------------------------------


@given(logps, logps, logps, logps, betas, weights, st.floats(0.1, 3))
def test_mmedpo_is_linear_in_the_weight(pc: float, pr: float, rc: float, rr: float, beta: float, weight: float, scale: float) -> None:
    values = (one(pc), one(pr), one(rc), one(rr))
    unweighted = dpo(*values, beta=beta)
    weighted = mmedpo_of(*values, beta=beta, pair_weight=weight, weight_scale=scale)
    torch.testing.assert_close(weighted.loss, weight / scale * unweighted.loss)
    torch.testing.assert_close(weighted.rewards["rejected_corrupt"], unweighted.rewards["rejected"])  # without the weight


def test_a_pair_of_weight_0_has_no_gradient() -> None:
    gradients = compute(Golden("mmedpo", B, [], facts={"pair_weight": [0.0]})).gradients
    assert {name: gradient.item() for name, gradient in gradients.items()} == dict.fromkeys(gradients, 0.0)
    assert len(gradients) == 2


# --- v_dpo -------------------------------------------------------------------------------------------------------------

six = st.tuples(*[logps] * 6)


@given(six, betas)
def test_v_dpo_at_guidance_1_is_dpo(values: tuple[float, ...], beta: float) -> None:
    chosen, rejected, blank_chosen, blank_rejected, *reference = map(one, values)
    guided = v_dpo(chosen, rejected, blank_chosen, blank_rejected, *reference, beta=beta, guidance=1.0)
    plain = dpo(chosen, rejected, *reference, beta=beta)
    torch.testing.assert_close(guided.loss, plain.loss)
    torch.testing.assert_close(guided.rewards, plain.rewards)


@given(six, betas, guidances)
def test_v_dpo_compares_guided_with_plain_log_probabilities(values: tuple[float, ...], beta: float, guidance: float) -> None:
    pc, pr, bc, br, rc, rr = values
    rewards = v_dpo(*map(one, values), beta=beta, guidance=guidance).rewards
    torch.testing.assert_close(rewards["chosen"], one(beta * (guidance * (pc - bc) + bc - rc)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(rewards["rejected"], one(beta * (guidance * (pr - br) + br - rr)), rtol=1e-9, atol=1e-9)


@given(six, guidances)
def test_guidance_scales_the_gradient_of_the_true_image(values: tuple[float, ...], guidance: float) -> None:
    """The blank side carries none, so d loss / d chosen is -guidance beta sigmoid(-margin), and the opposite of d loss / d rejected."""
    tensors = [one(value).requires_grad_(place < 2) for place, value in enumerate(values)]
    output = v_dpo(*tensors, beta=0.1, guidance=guidance)
    chosen, rejected = torch.autograd.grad(output.loss.sum(), tensors[:2])
    margin = output.rewards["chosen"] - output.rewards["rejected"]
    torch.testing.assert_close(chosen, (-guidance * 0.1 * torch.sigmoid(-margin)).detach())
    torch.testing.assert_close(rejected, -chosen)


def test_v_dpo_asks_for_the_blank_side_without_gradient() -> None:
    demand = build_objective(loss_node("v_dpo"), batch_size=2).demand
    assert demand.gradient_views == {"chosen", "rejected"}
    assert demand.policy_views == {"chosen", "rejected", "chosen_corrupt", "rejected_corrupt"}
    assert demand.reference_views == {"chosen", "rejected"}


@pytest.mark.parametrize("guidance", [0.0, -1.0, math.nan, math.inf])
def test_guidance_0_is_refused_with_its_reason(guidance: float) -> None:
    problems = problems_of({**loss_node("v_dpo"), "guidance": guidance}, batch_size=2)
    assert len(problems) == 1
    if not math.isnan(guidance):  # a NaN is no number already for the check of types
        words = "> 0" if math.isfinite(guidance) else "a finite number > 0"
        assert problems[0].startswith(f"loss.guidance must be {words}, got {guidance:g}; at 0 only the corrupted image's")
    assert "loss.guidance" in problems[0]


# --- settings and what is asked for ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("copo", "beta", 0.0),
        ("anchor", "beta", -1.0),
        ("anchor", "margin", -0.1),
        ("mmedpo", "beta", 0.0),
        ("v_dpo", "beta", 0.0),
        ("perception", "max_kl", 0.0),
        ("perception_k3", "max_kl", -1.0),
    ],
)
def test_a_setting_out_of_range_is_named(name: str, key: str, value: float) -> None:
    problems = problems_of({**loss_node(name), key: value}, batch_size=2)
    assert len(problems) == 1
    assert problems[0].startswith(f"loss.{key} must be {'>=' if key == 'margin' else '>'} 0, got {value:g}")


@pytest.mark.parametrize("loss", [hallucination_dpo, top_wrong_dpo, top_wrong_copo], ids=lambda loss: loss.__name__)
def test_the_inline_terms_refuse_a_beta_of_0(loss: Callable[..., ObjectiveOutput]) -> None:
    values = [one(-1.0)] * 4
    with pytest.raises(InputError, match=r"loss\.beta must be > 0, got 0"):
        loss(*values, beta=0.0)


CORRUPTIONS = {
    "mdpo": "crop",
    "mmedpo": "roi_noise",
    "mmedpo_released": "roi_noise_released",
    "v_dpo": "blank",
    "povid": "diffusion_noise",
    "opa_dpo": "pixel_mask",
    "re_align_rdpo": "file",
    "re_align_rdpo_released": "file",
}


@pytest.mark.parametrize(("name", "corruption"), CORRUPTIONS.items())
def test_a_loss_brings_its_own_corruption(name: str, corruption: str) -> None:
    """Named beside another choice on the command line, that choice wins."""
    assert compose_loss([f"loss={name}"]).corruption == corruption
    assert compose_loss([f"loss={name}", "corruption=gaussian"]).corruption == "gaussian"


@pytest.mark.parametrize("name", ["copo", "anchor", "perception", "perception_k3", "mdpo_released"])
def test_building_blocks_bring_none(name: str) -> None:
    assert compose_loss([f"loss={name}"]).corruption == compose_loss(["loss=dpo"]).corruption


def test_one_beta_reaches_all_terms_and_one_term_may_have_its_own() -> None:
    node = compose_loss(["loss=mdpo", "loss.beta=0.3", "loss.terms.copo.beta=0.7"]).node
    assert {name: term["beta"] for name, term in node["terms"].items()} == {"dpo": 0.3, "copo": 0.7, "anchor": 0.3}


def test_a_term_of_weight_0_takes_its_view_with_it() -> None:
    demand = build_objective(loss_node("mdpo", "loss.weights.copo=0"), batch_size=2).demand
    assert demand.views == {"chosen", "rejected"}
    assert build_objective(loss_node("mdpo"), batch_size=2).demand.views == {"chosen", "rejected", "chosen_corrupt"}


def test_a_perception_term_joins_mdpo_on_the_command_line() -> None:
    added = ("+loss@loss.terms.perception=perception", "+loss.weights.perception=0.01")
    objective = build_objective(loss_node("mdpo", *added), batch_size=2)
    assert [(term.name, term.weight) for term in objective.terms] == [("dpo", 1), ("copo", 1), ("anchor", 1), ("perception", 0.01)]
    assert compose_loss(["loss=mdpo", *added]).corruption == "crop"
