"""Metrics: sums and counts over micro-batches, the headline rewards, and the diagnostics that mean the same for every loss."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from medvlm_dpo import metrics
from medvlm_dpo.objectives.demand import Demand
from medvlm_dpo.objectives.diagnostics import (
    FUNCTIONS,
    all_diagnostics,
    free_diagnostics,
    margins_and_lengths,
    squared_correlation,
    validation_diagnostics,
)
from medvlm_dpo.objectives.terms import TermOutput, build_objective
from medvlm_dpo.objectives.totals import add_totals, loss_totals, means_of, share_above
from medvlm_dpo.vocab import TENSOR_NAMES, ObjectiveOutput

PACKAGE = "medvlm_dpo.objectives"
SFT = {"_target_": f"{PACKAGE}.supervised.sft"}
DPO = {"_target_": f"{PACKAGE}.contrastive.dpo", "beta": 0.1}
SIMPO = {"_target_": f"{PACKAGE}.reference_free.simpo", "beta": 2.0, "gamma_beta_ratio": 0.5}
LONE = build_objective(DPO, batch_size=2)
SUM = build_objective({"terms": {"dpo": DPO, "nll": SFT}, "weights": {"dpo": 2.0, "nll": 1.0}}, batch_size=2)
PAIR_CHANGES = {"preference_gain", "preference_margin", "chosen_logps_change", "rejected_logps_change"}


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Log-ratios chosen 1, -.5, 2 and rejected -.5, .2, 2: margins 1.5, -.7 and a tie. Mean log-probs -2, -2, -3 and -2, -1.8, -4.
TENSORS = {
    "policy_chosen_logps": column(-10, -8, -9),
    "policy_rejected_logps": column(-12, -9, -8),
    "reference_chosen_logps": column(-11, -7.5, -11),
    "reference_rejected_logps": column(-11.5, -9.2, -10),
    "policy_chosen_mean_logps": column(-2, -2, -3),
    "policy_rejected_mean_logps": column(-2, -1.8, -4),
    "policy_chosen_corrupt_logps": column(-11, -11, -8),
}
FACTS = {"chosen_lengths": torch.tensor([5, 4, 3]), "rejected_lengths": torch.tensor([6, 5, 2])}


def test_diagnostics_of_three_pairs() -> None:
    assert means_of(all_diagnostics().totals(TENSORS, FACTS)) == pytest.approx(
        {
            "preference_accuracy": (0.5 + 0 + 1) / 3,
            "preference_gain": (1 + 0 + 0.5) / 3,
            "preference_margin": (1.5 - 0.7 + 0) / 3,
            "chosen_logps_change": (1 - 0.5 + 2) / 3,
            "rejected_logps_change": (-0.5 + 0.2 + 2) / 3,
            "image_gap": (1 + 3 - 1) / 3,
            "chosen_length": 4,
            "rejected_length": 13 / 3,
        }
    )


def test_examples_without_an_answer_do_not_count() -> None:
    """The second example has no rejected answer, the third no chosen one: pairs count the first alone."""
    facts = {**FACTS, "chosen_present": torch.tensor([1, 1, 0]), "rejected_present": torch.tensor([1, 0, 1])}
    assert means_of(all_diagnostics().totals(TENSORS, facts)) == pytest.approx(
        {
            "preference_accuracy": 0.5,
            "preference_gain": 1,
            "preference_margin": 1.5,
            "chosen_logps_change": (1 - 0.5) / 2,
            "rejected_logps_change": (-0.5 + 2) / 2,
            "image_gap": (1 + 3) / 2,
            "chosen_length": 4.5,
            "rejected_length": 4,
        }
    )
    nobody = {**FACTS, "chosen_present": torch.zeros(3), "rejected_present": torch.ones(3)}
    assert set(means_of(all_diagnostics().totals(TENSORS, nobody))) == {"rejected_logps_change", "rejected_length"}


def test_diagnostics_ask_for_detached_values_only() -> None:
    demand = all_diagnostics().demand
    assert demand.gradient_tensors == frozenset()
    assert demand.views == {"chosen", "rejected", "chosen_corrupt"}
    assert demand.facts == {"chosen_lengths", "rejected_lengths"}
    tracked = {name: value.clone().requires_grad_(True) for name, value in TENSORS.items()}
    assert not any(total.total.requires_grad for total in all_diagnostics().totals(tracked, FACTS).values())


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (SFT, {"chosen_length"}),
        (SIMPO, {"chosen_length", "rejected_length", "preference_accuracy"}),
        (DPO, {"chosen_length", "rejected_length", "preference_accuracy"} | PAIR_CHANGES),
    ],
    ids=["sft", "simpo", "dpo"],
)
def test_training_reports_what_costs_no_forward_pass(node: dict[str, object], expected: set[str]) -> None:
    demand = build_objective(node, batch_size=2).demand
    free = free_diagnostics(demand)
    assert set(free.functions) == expected
    assert free.demand.views <= demand.views
    assert free.demand.reference_views <= demand.reference_views


def test_the_gain_never_stands_without_its_margin() -> None:
    for node in (SFT, SIMPO, DPO):
        free = set(free_diagnostics(build_objective(node, batch_size=2).demand).functions)
        assert (metrics.PREFERENCE_GAIN in free) == (metrics.PREFERENCE_MARGIN in free)


# --- losses and rewards -----------------------------------------------------------------------------------------------


def test_a_lone_function_has_no_term_prefix() -> None:
    """Rewards .1, -.05, .2 against -.05, .02, .2: one win, one loss, one tie."""
    outputs = LONE.evaluate(TENSORS, {}, {}, torch.arange(3))
    assert means_of(loss_totals(LONE, outputs, {})) == pytest.approx(
        {
            "loss": outputs[0].output.loss.mean().item(),
            "chosen_reward": 0.25 / 3,
            "rejected_reward": 0.17 / 3,
            "reward_accuracy": 0.5,
            "reward_margin": 0.08 / 3,
        }
    )


def test_a_sum_reports_each_term_before_its_weight_and_the_weighted_total() -> None:
    outputs = SUM.evaluate(TENSORS, {}, {}, torch.arange(3))
    means = means_of(loss_totals(SUM, outputs, {}))
    assert set(means) == {
        *("loss", "dpo/loss", "nll/loss", "dpo/chosen_reward", "dpo/rejected_reward"),
        *("chosen_reward", "rejected_reward", "reward_accuracy", "reward_margin"),
    }
    assert means["nll/loss"] == pytest.approx(7 / 3)
    assert means["loss"] == pytest.approx(2 * means["dpo/loss"] + means["nll/loss"])
    assert means["chosen_reward"] == means["dpo/chosen_reward"]


def term(name: str, **rewards: float) -> TermOutput:
    return TermOutput(name, 1.0, ObjectiveOutput(column(0), {view: column(value) for view, value in rewards.items()}))


def test_headline_rewards_come_from_the_first_term_that_has_both() -> None:
    outputs = [term("image", chosen=1, chosen_corrupt=3), term("mixed", chosen=5, rejected_corrupt=1), term("pair", chosen=7, rejected=2)]
    means = means_of(loss_totals(SUM, [*outputs, term("late", chosen=100, rejected=0)], {}))
    assert (means[metrics.CHOSEN_REWARD], means[metrics.REJECTED_REWARD], means[metrics.REWARD_MARGIN]) == (7, 2, 5)
    assert (means[metrics.IMAGE_ACCURACY], means[metrics.IMAGE_MARGIN]) == (0, -2)
    assert (means[metrics.MIXED_ACCURACY], means[metrics.MIXED_MARGIN]) == (1, 4)
    assert means["image/chosen_corrupt_reward"] == 3


def test_absent_answers_do_not_enter_the_mean_rewards() -> None:
    outputs = LONE.evaluate(TENSORS, {}, {}, torch.arange(3))
    facts = {"chosen_present": torch.tensor([True, True, True]), "rejected_present": torch.tensor([True, False, False])}
    means = means_of(loss_totals(LONE, outputs, facts))
    assert means["rejected_reward"] == pytest.approx(-0.05)
    assert means["chosen_reward"] == pytest.approx(0.25 / 3)
    assert means["reward_accuracy"] == 1


def test_micro_batches_of_any_size_add_up_to_the_whole() -> None:
    whole = loss_totals(LONE, LONE.evaluate(TENSORS, {}, {}, torch.arange(3)), {})
    parts = []
    for rows in ([0, 2], [1]):
        outputs = LONE.evaluate({name: value[rows] for name, value in TENSORS.items()}, {}, {}, torch.tensor(rows))
        parts.append(loss_totals(LONE, outputs, {}))
    assert means_of(add_totals(parts)) == pytest.approx(means_of(whole), rel=1e-12)
    assert add_totals([]) == {}


def test_ties_count_one_half() -> None:
    assert share_above(column(1, 1, 0), column(0, 1, 1)).tolist() == [1, 0.5, 0]


# --- names ------------------------------------------------------------------------------------------------------------


def test_names() -> None:
    assert metrics.metric(metrics.VALIDATION, metrics.PREFERENCE_GAIN) == "validation/preference_gain"
    assert metrics.metric(metrics.TRAIN, metrics.of_term("mdpo/dpo", metrics.LOSS)) == "train/mdpo/dpo/loss"
    assert (metrics.reward_of("chosen"), metrics.reward_of("rejected")) == (metrics.CHOSEN_REWARD, metrics.REJECTED_REWARD)
    assert all(function.__name__ == name for name, function in FUNCTIONS.items())


def test_the_names_need_no_torch() -> None:
    code = "import sys, medvlm_dpo.metrics; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what needs more than one example ----------------------------------------------------------------------------------


def test_squared_correlation_is_that_of_numpy_and_silent_without_variance() -> None:
    generator = torch.Generator().manual_seed(2)
    pairs = torch.randn((40, 2), generator=generator, dtype=torch.float64)
    pairs[:, 1] += pairs[:, 0]
    assert squared_correlation(pairs) == pytest.approx(float(np.corrcoef(pairs.numpy().T)[0, 1] ** 2))
    line = torch.arange(5, dtype=torch.float64)
    assert squared_correlation(torch.stack([line, 3 - 2 * line], dim=1)) == pytest.approx(1)
    assert squared_correlation(torch.stack([line, torch.ones(5, dtype=torch.float64)], dim=1)) is None
    assert squared_correlation(pairs[:2]) is None


def test_margins_and_lengths_of_complete_pairs_only() -> None:
    tensors = {
        "detached_policy_chosen_logps": column(-1, -2, 0),
        "detached_policy_rejected_logps": column(-5, -4, -6),
        "reference_chosen_logps": column(-2, -2, 0),
        "reference_rejected_logps": column(-3, -4.5, -6),
    }
    facts = {
        "chosen_lengths": torch.tensor([4, 7, 0]),
        "rejected_lengths": torch.tensor([6, 2, 3]),
        "chosen_present": column(1, 1, 0),
        "rejected_present": column(1, 1, 1),
    }
    # margins (-1 + 5) - (-2 + 3) = 3 and (-2 + 4) - (-2 + 4.5) = -.5; lengths 4 - 6 and 7 - 2
    assert margins_and_lengths(tensors, facts).tolist() == [[3.0, -2.0], [-0.5, 5.0]]


@pytest.mark.parametrize(("views", "reported"), [({"chosen", "rejected"}, False), ({"chosen", "chosen_corrupt"}, True)])
def test_the_image_gap_is_reported_only_where_the_loss_reads_the_corrupted_image(views: set[str], reported: bool) -> None:
    demand = Demand(objective_tensors=frozenset(TENSOR_NAMES[f"policy_{view}_logps"] for view in views))
    names = validation_diagnostics(demand).functions.keys()
    assert ("image_gap" in names) == reported
    assert all_diagnostics().functions.keys() - names == (set() if reported else {"image_gap"})
    assert ("image_gap" in free_diagnostics(demand).functions) == reported


def test_the_image_gap_of_a_perception_loss_is_free() -> None:
    """Its divergence has scored the corrupted image already."""
    demand = Demand(objective_tensors=frozenset({TENSOR_NAMES["policy_chosen_token_image_kl"]}))
    assert "image_gap" in free_diagnostics(demand).functions


def test_differences_of_rounding_are_ties() -> None:
    values = column(1.0, 1.0, 1.0, 1.0, 1.0)
    others = values - column(2e-5, 9e-6, 0, -9e-6, -2e-5)
    assert share_above(values, others, tie=1e-5).tolist() == [1, 0.5, 0.5, 0.5, 0]
    assert share_above(values, others).tolist() == [1, 1, 0.5, 0, 0]
    tensors = {**TENSORS, "policy_chosen_logps": TENSORS["reference_chosen_logps"] + 3e-6}
    tensors["policy_rejected_logps"] = TENSORS["reference_rejected_logps"] - 3e-6
    assert means_of(all_diagnostics().totals(tensors, FACTS))["preference_gain"] == 0.5
