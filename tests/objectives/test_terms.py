"""Losses built from their yaml: sums, weights, shared settings, statistics with state, and every complaint."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.calls import serve
from medvlm_dpo.objectives.terms import build_objective, missing_answer_problems, problems_of, weighted_loss

PACKAGE = "medvlm_dpo.objectives"
SFT = {"_target_": f"{PACKAGE}.supervised.sft", "_partial_": True}
DPO = {"_target_": f"{PACKAGE}.contrastive.dpo", "_partial_": True, "beta": 0.1}
KTO = {
    "_target_": f"{PACKAGE}.kto.kto",
    "_partial_": True,
    "beta": 0.1,
    "desirable_weight": 1.0,
    "undesirable_weight": 1.0,
    "unmatched_kl": {"_target_": f"{PACKAGE}.statistics.unmatched_kl", "_partial_": True},
}

WriteModule = Callable[[str], str]


def problems(node: Mapping[str, Any], batch_size: int = 4) -> list[str]:
    """What is wrong with a node; building it must say the same."""
    found = problems_of(node, batch_size=batch_size)
    if found:
        with pytest.raises(InputError) as raised:
            build_objective(node, batch_size=batch_size)
        assert raised.value.problems == tuple(found)
    else:
        build_objective(node, batch_size=batch_size)
    return found


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


TENSORS = {
    "policy_chosen_logps": column(-10, -8),
    "policy_rejected_logps": column(-12, -9),
    "reference_chosen_logps": column(-11, -7.5),
    "reference_rejected_logps": column(-11.5, -9.2),
    "policy_chosen_mean_logps": column(-2, -2),
}
DPO_LOSS = column(0.6209570477895321, 0.7287595555486971)  # softplus(-.15), softplus(.07)
SFT_LOSS = column(2, 2)


def total(node: Mapping[str, Any]) -> Tensor:
    return weighted_loss(build_objective(node, batch_size=2).evaluate(TENSORS, {}, {}, torch.arange(2)))


# --- sums -------------------------------------------------------------------------------------------------------------


def test_a_sum_weighs_its_terms() -> None:
    node = {"terms": {"dpo": DPO, "nll": SFT}, "weights": {"dpo": 2.0, "nll": 0.5}}
    objective = build_objective(node, batch_size=2)
    assert objective.is_sum
    assert [(term.name, term.weight) for term in objective.terms] == [("dpo", 2.0), ("nll", 0.5)]
    torch.testing.assert_close(total(node), 2 * DPO_LOSS + 0.5 * SFT_LOSS)
    assert {str(name) for name in objective.demand.tensors} == set(TENSORS)
    outputs = objective.evaluate(TENSORS, {}, {}, torch.arange(2))
    torch.testing.assert_close(outputs[0].output.loss, DPO_LOSS)  # before the weight


def test_a_lone_function_is_its_own_term() -> None:
    objective = build_objective(DPO, batch_size=2)
    assert not objective.is_sum
    assert [(term.name, term.weight) for term in objective.terms] == [("dpo", 1.0)]


def test_nested_sums_flatten_and_weights_multiply() -> None:
    inner = {"terms": {"dpo": DPO, "nll": SFT}, "weights": {"dpo": 2.0, "nll": 0.5}}
    node = {"terms": {"inner": inner, "nll": SFT}, "weights": {"inner": 3.0, "nll": 1.0}}
    objective = build_objective(node, batch_size=2)
    assert [(term.name, term.weight) for term in objective.terms] == [("inner/dpo", 6.0), ("inner/nll", 1.5), ("nll", 1.0)]
    torch.testing.assert_close(total(node), 6 * DPO_LOSS + 2.5 * SFT_LOSS)


def test_weight_0_removes_a_term_its_views_and_its_complaints() -> None:
    node = {"terms": {"dpo": {**DPO, "beta": -1.0}, "kto": KTO, "nll": SFT}, "weights": {"dpo": 0, "kto": 0.0, "nll": 1.0}}
    objective = build_objective(node, batch_size=2)
    assert [term.name for term in objective.terms] == ["nll"]
    assert objective.demand.views == {"chosen"}
    assert not objective.demand.needs_reference
    assert objective.estimators == {}
    torch.testing.assert_close(total(node), SFT_LOSS)


def test_all_weights_0() -> None:
    assert problems({"terms": {"dpo": DPO}, "weights": {"dpo": 0}}) == [
        "loss.weights: every term has weight 0, so nothing would be trained"
    ]


def test_shared_settings_are_no_terms() -> None:
    """Whether a term reads them is seen where the references still stand: medvlm_dpo.config.shared."""
    inner = {"beta": 0.25, "terms": {"dpo": {**DPO, "beta": 0.25}}, "weights": {"dpo": 1.0}}
    assert problems({"beta": 0.25, "terms": {"inner": inner, "nll": SFT}, "weights": {"inner": 1.0, "nll": 1.0}}) == []


def test_complaints_about_weights_come_together() -> None:
    node = {"terms": {"anchor": DPO, "copo": DPO, "dpo": DPO}, "weights": {"dpo": -1, "anchor": "much", "nll": 1.0, "copoo": 1}}
    assert problems(node) == [
        "loss.weights.copo is missing: every term needs a weight",
        "loss.weights.dpo must be >= 0, got -1; signs belong inside a term",
        "loss.weights.anchor must be a number, got 'much'",
        "loss.weights.nll: no such term; terms are anchor, copo, dpo",
        "loss.weights.copoo: no such term; terms are anchor, copo, dpo; did you mean copo?",
    ]


@pytest.mark.parametrize("weight", [math.inf, -math.inf])
def test_a_weight_without_end_must_be_finite(weight: float) -> None:
    node = {"terms": {"dpo": DPO, "nll": SFT}, "weights": {"dpo": weight, "nll": 1.0}}
    assert problems(node) == [f"loss.weights.dpo must be a finite number >= 0, got {weight}; signs belong inside a term"]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {**DPO, "terms": {}},
            "loss has both _target_ and terms; a loss is one function or a sum (docs/objectives.md shows how to write a sum of both)",
        ),
        ({"beta": 0.1}, "loss has neither _target_ nor terms; a loss is one function or a sum"),
        ({"terms": {}, "weights": {}}, "loss.terms and loss.weights must map the names of terms to terms and to numbers"),
        ({"terms": {"dpo": DPO}, "weights": 1}, "loss.terms and loss.weights must map the names of terms to terms and to numbers"),
        ({"terms": {"dpo": DPO}}, "loss.weights.dpo is missing: every term needs a weight"),
        ({"terms": {"dpo": "dpo"}, "weights": {"dpo": 1}}, "loss.terms.dpo must be a term (a node with _target_ or terms), got 'dpo'"),
    ],
)
def test_complaints_about_the_shape_of_a_loss(node: Mapping[str, Any], message: str) -> None:
    assert problems(node) == [message]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (f"{PACKAGE}.contrastive.dpoo", f"{PACKAGE}.contrastive.dpoo does not exist in {PACKAGE}.contrastive; did you mean dpo?"),
        (f"{PACKAGE}.contrastve.dpo", f"{PACKAGE}.contrastve.dpo does not exist (no module named '{PACKAGE}.contrastve')"),
        (f"{PACKAGE}.supervised.zzz", f"{PACKAGE}.supervised.zzz does not exist in {PACKAGE}.supervised"),
    ],
)
def test_unknown_targets(target: str, message: str) -> None:
    assert problems({**DPO, "_target_": target}) == [f"loss._target_: {message}"]


@pytest.mark.parametrize("target", ["dpo", 3, None])
def test_a_target_must_be_a_dotted_name(target: object) -> None:
    (problem,) = problems({**DPO, "_target_": target})
    assert problem.startswith("loss._target_ must be a dotted name like package.module.function, got ")


def test_a_module_that_fails_while_it_is_imported(user_module: WriteModule) -> None:
    name = user_module("raise RuntimeError('no licence')")
    assert problems({**SFT, "_target_": f"{name}.loss"}) == [f"loss._target_: {name}.loss cannot be imported (RuntimeError: no licence)"]


# --- statistics -------------------------------------------------------------------------------------------------------


MOVING = """
def moving_length(chosen_lengths: PerExample, previous: dict[str, Tensor], *, decay: float) -> tuple[Tensor, dict[str, Tensor]]:
    before = previous.get("mean", torch.zeros(()))
    mean = decay * before + (1 - decay) * chosen_lengths.mean()
    return mean, {"mean": mean}

def rank(policy_chosen_logps: PerExample) -> PerExample:
    return policy_chosen_logps.argsort(stable=True).argsort(stable=True).to(policy_chosen_logps)

def loss(policy_chosen_logps: PerExample, length: Tensor, place: PerExample) -> ObjectiveOutput:
    return ObjectiveOutput(place - policy_chosen_logps / length, {})
"""


@pytest.fixture
def moving(user_module: WriteModule) -> dict[str, Any]:
    name = user_module(MOVING)
    return {
        "_target_": f"{name}.loss",
        "length": {"_target_": f"{name}.moving_length", "decay": 0.5},
        "place": {"_target_": f"{name}.rank"},
    }


def test_state_goes_from_step_to_step(moving: dict[str, Any]) -> None:
    """Mean lengths 4 and 8 at decay 1/2 from 0: first 2, then 5. Without the state the second step would give 4."""
    objective = build_objective({"terms": {"a": moving}, "weights": {"a": 1.0}}, batch_size=2)
    served = {"detached_policy_chosen_logps": column(-1, -2)}
    first, states = objective.estimate(served, {"chosen_lengths": torch.tensor([3, 5])}, {})
    assert states == {"a/length": {"mean": torch.tensor(2.0, dtype=torch.float64)}}
    second, states = objective.estimate(served, {"chosen_lengths": torch.tensor([6, 10])}, states)
    values = [value["a/length"] for value in (first, second)]
    assert [value.item() for value in values if isinstance(value, Tensor)] == [2, 5]
    assert states["a/length"]["mean"].item() == 5


def test_values_per_example_are_cut_to_the_micro_batch(moving: dict[str, Any]) -> None:
    """Ranks of -5, -1, -3 are 0, 2, 1; length 2. The micro-batch holds examples 2 and 1: 1 + 3/2 and 2 + 1/2."""
    objective = build_objective({**moving, "length": 2}, batch_size=3)
    statistics, states = objective.estimate({"detached_policy_chosen_logps": column(-5, -1, -3)}, {}, {})
    assert states == {}
    (output,) = objective.evaluate({"policy_chosen_logps": column(-3, -1).float()}, {}, statistics, torch.tensor([2, 1]))
    assert output.output.loss.tolist() == [2.5, 2.5]
    assert output.output.loss.dtype == torch.float32


def test_statistics_carry_no_gradient_and_are_float64(moving: dict[str, Any]) -> None:
    objective = build_objective(moving, batch_size=2)
    leaf = torch.tensor([-1.0, -2.0], requires_grad=True)
    statistics, _ = objective.estimate({"policy_chosen_logps": leaf}, {"chosen_lengths": torch.tensor([3, 5])}, {})
    for value in statistics.values():
        assert isinstance(value, Tensor)
        assert value.dtype == torch.float64
        assert not value.requires_grad


def test_keys_of_values_and_states(moving: dict[str, Any]) -> None:
    inner = {"terms": {"kto": KTO, "own": moving}, "weights": {"kto": 1, "own": 1}}
    objective = build_objective({"terms": {"inner": inner}, "weights": {"inner": 1}}, batch_size=2)
    assert list(objective.estimators) == ["inner/kto/unmatched_kl", "inner/own/length", "inner/own/place"]
    assert list(build_objective(KTO, batch_size=2).estimators) == ["kto/unmatched_kl"]


def test_what_was_not_served_is_named() -> None:
    with pytest.raises(KeyError, match="reference_chosen_logps was asked for and not served; served are policy_chosen_logps"):
        serve("reference_chosen_logps", {"policy_chosen_logps": column(0)})
    with pytest.raises(KeyError, match="detached_policy_rejected_logps was asked for"):
        serve("detached_policy_rejected_logps", {"policy_chosen_logps": column(0)})


# --- missing answers --------------------------------------------------------------------------------------------------


def test_examples_without_an_answer() -> None:
    objective = build_objective({"terms": {"dpo": DPO, "kto": KTO, "nll": SFT}, "weights": {"dpo": 1, "kto": 1, "nll": 1}}, batch_size=2)
    missing = {"rejected": ["17", "20"], "chosen": []}
    assert missing_answer_problems(objective, missing, num_examples=300, unpaired_losses=lambda: ["kto", "bco"]) == [
        "loss term dpo needs a rejected answer; 2 of 300 examples have none (first: id 17). Unpaired data works with kto, bco"
    ]
    assert missing_answer_problems(build_objective(KTO, batch_size=2), missing, num_examples=300, unpaired_losses=lambda: ["kto"]) == []


# --- a new loss -------------------------------------------------------------------------------------------------------


def test_a_new_loss_is_one_function_and_one_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the package is edited, registered or subclassed: hinge loss from a user's own folder."""
    (tmp_path / "my_losses.py").write_text(
        """
from medvlm_dpo.vocab import ObjectiveOutput, PerExample


def hinge(
    policy_chosen_logps: PerExample, policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample, reference_rejected_logps: PerExample, *, beta: float,
) -> ObjectiveOutput:
    if beta <= 0:
        raise ValueError(f"loss.beta must be > 0, got {beta}")
    chosen = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected = beta * (policy_rejected_logps - reference_rejected_logps)
    return ObjectiveOutput((1 - chosen + rejected).clamp(min=0), {"chosen": chosen, "rejected": rejected})
""",
        encoding="utf-8",
    )
    (tmp_path / "hinge.yaml").write_text("_target_: my_losses.hinge\n_partial_: true\nbeta: 0.1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    node = yaml.safe_load((tmp_path / "hinge.yaml").read_text(encoding="utf-8"))
    torch.testing.assert_close(total(node), column(0.85, 1.07))  # 1 - .1 x 1.5 and 1 + .1 x .7
    assert build_objective(node, batch_size=2).demand == build_objective(DPO, batch_size=2).demand
    assert problems({**node, "beta": -1}) == ["loss.beta must be > 0, got -1.0"]
