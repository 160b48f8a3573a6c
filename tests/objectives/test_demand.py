"""What a signature asks for, and every complaint about one."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
from torch import Tensor

from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.contrastive import dpo, ipo
from medvlm_dpo.objectives.demand import Demand, answer_of, bind_estimator, bind_objective, demand_of
from medvlm_dpo.objectives.kto import kto
from medvlm_dpo.objectives.reference_free import simpo
from medvlm_dpo.objectives.supervised import sft
from medvlm_dpo.vocab import TENSOR_NAMES, ObjectiveOutput, PerExample

STATISTICS = "medvlm_dpo.objectives.statistics"
ESTIMATED = {"_target_": f"{STATISTICS}.unmatched_kl", "_partial_": True}
KTO = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "unmatched_kl": ESTIMATED}


def problems_with(function: Callable[..., ObjectiveOutput], settings: dict[str, object]) -> tuple[str, ...]:
    with pytest.raises(InputError) as raised:
        demand_of(function, settings)
    return raised.value.problems


def names(*wanted: str) -> frozenset[object]:
    return frozenset(TENSOR_NAMES[name] for name in wanted)


def test_demand_of_a_reference_loss() -> None:
    demand = demand_of(dpo, {"beta": 0.1})
    assert demand.tensors == names("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")
    assert demand.gradient_tensors == names("policy_chosen_logps", "policy_rejected_logps")
    assert demand.views == demand.gradient_views == demand.policy_views == demand.reference_views == {"chosen", "rejected"}
    assert demand.required_answers == {"chosen", "rejected"}
    assert demand.needs_reference
    assert not demand.measures_policy
    assert demand.facts == frozenset()


def test_demand_of_losses_without_reference() -> None:
    assert not demand_of(simpo, {"beta": 2.0, "gamma_beta_ratio": 0.5}).needs_reference
    demand = demand_of(sft, {})
    assert demand.views == demand.required_answers == {"chosen"}
    assert demand.reference_views == frozenset()


def test_demand_of_a_loss_with_an_estimator() -> None:
    """KTO: the unmatched answer is scored without gradient, for the estimator alone; presence makes either answer optional."""
    demand = demand_of(kto, KTO)
    assert demand.estimator_tensors == names("detached_policy_unmatched_logps", "reference_unmatched_logps")
    assert demand.tensors == demand.objective_tensors | demand.estimator_tensors
    assert demand.gradient_views == {"chosen", "rejected"}
    assert demand.policy_views == demand.reference_views == demand.views == {"chosen", "rejected", "unmatched"}
    assert demand.objective_facts == demand.facts == {"chosen_present", "rejected_present"}
    assert demand.required_answers == frozenset()
    assert demand.measures_policy


def test_a_fixed_number_in_place_of_an_estimator_costs_no_view() -> None:
    demand = demand_of(kto, {**KTO, "unmatched_kl": 0.0})
    assert demand.views == {"chosen", "rejected"}
    assert not demand.measures_policy


def test_union() -> None:
    both = demand_of(sft, {}) | demand_of(kto, KTO)
    assert both.tensors == demand_of(sft, {}).tensors | demand_of(kto, KTO).tensors
    assert both.required_answers == {"chosen"}  # one term that needs the answer is enough
    assert both | Demand() == both


def test_an_estimator_that_asks_for_policy_tensors_gets_them_detached() -> None:
    def gap(policy_chosen_logps: PerExample, chosen_lengths: PerExample) -> Tensor:
        return (policy_chosen_logps - chosen_lengths).mean()

    bound, problems = bind_estimator(gap, {}, where="loss.gap")
    assert problems == []
    assert bound.demand.tensors == names("detached_policy_chosen_logps")
    assert bound.demand.estimator_facts == {"chosen_lengths"}
    assert bound.demand.required_answers == {"chosen"}


@pytest.mark.parametrize(
    ("name", "answer"), [("chosen", "chosen"), ("rejected_corrupt", "rejected"), ("unmatched", None), ("pair_weight", None)]
)
def test_answer_of(name: str, answer: str | None) -> None:
    assert answer_of(name) == answer


def test_whole_yaml_numbers_become_floats() -> None:
    bound, problems = bind_objective(ipo, {"beta": 1})
    assert problems == []
    assert isinstance(bound.settings["beta"], float)


# --- complaints -------------------------------------------------------------------------------------------------------


def test_unknown_positional_name() -> None:
    def misspelt(policy_chosen_logps: PerExample, unmatched_kll: Tensor) -> ObjectiveOutput:
        return ObjectiveOutput(policy_chosen_logps * unmatched_kll, {})

    (problem,) = problems_with(misspelt, {})
    assert problem == (
        "misspelt: 'unmatched_kll' is neither a tensor nor a fact (nearest: policy_unmatched_logps); "
        "if it is a batch statistic, give its estimator or a number in the loss yaml"
    )


def test_unknown_and_missing_settings_come_together_with_the_nearest_name() -> None:
    assert problems_with(dpo, {"betta": 0.1}) == (
        "loss.betta: dpo takes beta; did you mean beta?",
        "loss.beta is missing; dpo takes beta",
    )
    assert problems_with(sft, {"beta": 0.1}) == ("loss.beta: sft takes no settings",)


def test_a_tensor_is_no_setting() -> None:
    assert problems_with(dpo, {"beta": 0.1, "policy_chosen_logps": 3.0}) == ("loss.policy_chosen_logps: dpo takes beta",)


@pytest.mark.parametrize(
    ("value", "shown"), [("0.1", "'0.1'"), (None, "null"), (True, "True"), (float("nan"), "nan"), ([0.1], r"\[0.1\]")], ids=str
)
def test_setting_of_the_wrong_type(value: object, shown: str) -> None:
    with pytest.raises(InputError, match=f"^loss.beta must be a number, got {shown}$"):
        demand_of(dpo, {"beta": value})


def test_types_of_other_settings() -> None:
    def odd(policy_chosen_logps: PerExample, *, steps: int, name: str, exact: bool, shape: list[int]) -> ObjectiveOutput:
        return ObjectiveOutput(policy_chosen_logps * steps * len(name) * exact * len(shape), {})

    assert problems_with(odd, {"steps": 1.5, "name": 3, "exact": 1, "shape": "anything: only plain types are checked"}) == (
        "loss.steps must be a whole number, got 1.5",
        "loss.name must be a text, got 3",
        "loss.exact must be true or false, got 1",
    )
    assert demand_of(odd, {"steps": 1, "name": "a", "exact": True, "shape": [1]}).views == {"chosen"}


def test_open_ended_arguments_and_defaults_in_code() -> None:
    def open_ended(policy_chosen_logps: PerExample, *rest: Tensor, beta: float = 0.1, **more: Tensor) -> ObjectiveOutput:
        return ObjectiveOutput(policy_chosen_logps * beta * len(rest) * len(more), {})

    problems = problems_with(open_ended, {"beta": 0.1})
    assert problems[0].startswith("open_ended: *rest")
    assert problems[0].endswith(": name every tensor; open-ended arguments cannot be checked")
    assert problems[1] == "open_ended: beta has a default in code; values stand in the loss yaml alone, so remove it"
    assert problems[2].startswith("open_ended: **more")


def test_a_loss_without_gradient() -> None:
    def frozen(reference_chosen_logps: PerExample) -> ObjectiveOutput:
        return ObjectiveOutput(reference_chosen_logps, {})

    with pytest.raises(InputError, match="frozen asks for no policy_ tensor, so nothing would be trained"):
        demand_of(frozen, {})


def test_estimator_over_tokens() -> None:
    def mean_gap_moments(policy_chosen_token_logps: Tensor) -> Tensor:
        return policy_chosen_token_logps.mean()

    _, problems = bind_estimator(mean_gap_moments, {}, where="loss.gap")
    assert problems == [
        "mean_gap_moments: 'policy_chosen_token_logps': an estimator sees one value per example; ask for the sum or the mean"
    ]


def test_estimator_over_masks() -> None:
    def changed_share(chosen_changed_mask: Tensor) -> Tensor:
        return chosen_changed_mask.mean()

    _, problems = bind_estimator(changed_share, {}, where="loss.share")
    assert problems == ["changed_share: 'chosen_changed_mask': an estimator sees one value per example, not one per token"]


def test_unknown_name_and_setting_of_an_estimator() -> None:
    def moments(chosen_lenghts: PerExample, *, decay: float) -> Tensor:
        return chosen_lenghts.mean() * decay

    _, problems = bind_estimator(moments, {"decai": 0.9}, where="loss.gap")
    assert problems == [
        "moments: 'chosen_lenghts' is neither a tensor nor a fact (nearest: chosen_lengths)",
        "loss.gap.decai: moments takes decay; did you mean decay?",
        "loss.gap.decay is missing; moments takes decay",
    ]


class Moments(NamedTuple):
    mean: Tensor
    std: Tensor


def alpha_dpo(policy_chosen_logps: PerExample, gap: Moments, ranks: PerExample) -> ObjectiveOutput:
    return ObjectiveOutput((policy_chosen_logps - gap.mean) / gap.std + ranks, {})


def test_a_number_cannot_stand_for_a_named_tuple_or_for_values_per_example() -> None:
    assert problems_with(alpha_dpo, {"gap": 0.5, "ranks": 1}) == (
        "alpha_dpo.gap is a named tuple; give an estimator, not a number",
        "alpha_dpo.ranks is one value per example; give an estimator, not a number",
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("much", r"^loss\.unmatched_kl must be an estimator \(a node with _target_\) or a number, got 'much'$"),
        ({"decay": 0.9}, r"^loss\.unmatched_kl must be an estimator \(a node with _target_\) or a number, got \{'decay': 0\.9\}$"),
        ({"_target_": f"{STATISTICS}.unmatched_kll"}, r"^loss\.unmatched_kl\._target_: .*did you mean unmatched_kl\?$"),
        ({**ESTIMATED, "decay": 0.9}, r"^loss\.unmatched_kl\.decay: unmatched_kl takes no settings$"),
        ({**ESTIMATED, "_partial_": False}, r"^loss\.unmatched_kl\._partial_ must be true \(the tensors come later\), got False$"),
    ],
    ids=["text", "no target", "unknown target", "unknown setting", "not partial"],
)
def test_what_cannot_fill_a_statistic(value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        demand_of(kto, {**KTO, "unmatched_kl": value})
