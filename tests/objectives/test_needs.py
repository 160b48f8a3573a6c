"""What a loss needs is told in plain values: what is scored, by whom, and how often."""

import json
from collections.abc import Callable

import pytest
from loss_world import loss_node

from medvlm_dpo.config.catalogue import loss_names
from medvlm_dpo.objectives.needs import needs_of
from medvlm_dpo.objectives.terms import build_objective

DPO = {"_target_": "medvlm_dpo.objectives.contrastive.dpo", "_partial_": True, "beta": 0.1}
SFT = {"_target_": "medvlm_dpo.objectives.supervised.sft", "_partial_": True}


def test_dpo_scores_two_answers_with_both_models():
    assert needs_of(build_objective(DPO, batch_size=4)) == {
        "terms": {"dpo": 1.0},
        "required_answers": ["chosen", "rejected"],
        "policy_with_gradient": ["chosen", "rejected"],
        "policy_without_gradient": [],
        "reference": ["chosen", "rejected"],
        "reference_distributions": [],
        "corrupted_views": [],
        "quantities": ["logps"],
        "facts": [],
        "statistics": {},
        "measured_first": [],
        "answers_scored": {"policy_with_gradient": 2, "policy_without_gradient": 0, "reference": 2},
    }


def test_kto_measures_its_statistic_before_it_trains():
    needs = needs_of(build_objective(loss_node("kto"), batch_size=4))
    assert needs["required_answers"] == []
    assert needs["policy_without_gradient"] == needs["measured_first"] == ["unmatched"]
    assert needs["reference"] == ["chosen", "rejected", "unmatched"]
    assert needs["facts"] == ["chosen_present", "rejected_present"]
    assert needs["statistics"] == {"kto/unmatched_kl": "medvlm_dpo.objectives.statistics.unmatched_kl"}
    assert needs["answers_scored"] == {"policy_with_gradient": 2, "policy_without_gradient": 1, "reference": 3}


def test_a_statistic_fixed_to_a_number_needs_no_measuring():
    needs = needs_of(build_objective({**loss_node("kto"), "unmatched_kl": 0.25}, batch_size=4))
    assert needs["statistics"] == {"kto/unmatched_kl": 0.25}
    assert needs["measured_first"] == needs["policy_without_gradient"] == []


def test_terms_come_with_their_weights_and_a_term_of_weight_0_does_not_count():
    inner = {"terms": {"nll": SFT, "dpo": DPO}, "weights": {"nll": 0.5, "dpo": 2.0}}
    node = {"terms": {"inner": inner, "more": DPO}, "weights": {"inner": 3.0, "more": 0}}
    needs = needs_of(build_objective(node, batch_size=4))
    assert list(needs["terms"].items()) == [("inner/dpo", 6.0), ("inner/nll", 1.5)]
    assert needs_of(build_objective({**node, "weights": {"inner": 0, "more": 1}}, batch_size=4))["terms"] == {"more": 1.0}


READS_MORE = '''
def far(policy_chosen_logps: PerExample, policy_rejected_forward_kl: PerExample) -> ObjectiveOutput:
    """Reads the reference's distribution on the rejected answer."""
    return ObjectiveOutput(policy_rejected_forward_kl - policy_chosen_logps, {})


def blurred(policy_chosen_image_kl: PerExample, pair_weight: PerExample) -> ObjectiveOutput:
    """Reads the policy's distribution on the corrupted image."""
    return ObjectiveOutput(policy_chosen_image_kl * pair_weight, {})
'''


def test_a_distribution_of_the_reference_is_named(user_module: Callable[[str], str]):
    module = user_module(READS_MORE)
    needs = needs_of(build_objective({"_target_": f"{module}.far"}, batch_size=4))
    assert needs["reference"] == needs["reference_distributions"] == ["rejected"]
    assert needs["quantities"] == ["forward_kl", "logps"]


def test_an_image_kl_scores_the_corrupted_image_without_gradient(user_module: Callable[[str], str]):
    module = user_module(READS_MORE)
    needs = needs_of(build_objective({"_target_": f"{module}.blurred"}, batch_size=4))
    assert needs["policy_with_gradient"] == ["chosen"]
    assert needs["policy_without_gradient"] == needs["corrupted_views"] == ["chosen_corrupt"]
    assert needs["reference"] == []
    assert needs["facts"] == ["pair_weight"]


@pytest.mark.parametrize("name", loss_names())
def test_every_loss_of_the_catalogue_is_told_in_json(name: str):
    needs = needs_of(build_objective(loss_node(name), batch_size=4))
    assert json.loads(json.dumps(needs)) == needs
    assert all(value == sorted(value) for value in needs.values() if isinstance(value, list))
    assert needs["answers_scored"]["policy_with_gradient"] == len(needs["policy_with_gradient"]) > 0
