"""Ranges of settings and broken bodies: found by running a loss on made-up values, before any weight is read."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.terms import build_objective, problems_of

PACKAGE = "medvlm_dpo.objectives"
DPO = {"_target_": f"{PACKAGE}.contrastive.dpo", "_partial_": True, "beta": 0.1}
KTO = {
    "_target_": f"{PACKAGE}.kto.kto",
    "beta": 0.1,
    "desirable_weight": 1.0,
    "undesirable_weight": 1.0,
    "unmatched_kl": {"_target_": f"{PACKAGE}.statistics.unmatched_kl"},
}

WriteModule = Callable[[str], str]


def problems(node: Mapping[str, Any], batch_size: int = 4) -> list[str]:
    return problems_of(node, batch_size=batch_size)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("value", "words"), [(0, "> 0"), (-1, "> 0"), (float("inf"), "a finite number > 0")])
@pytest.mark.parametrize("name", ["contrastive.dpo", "contrastive.ipo"])
def test_beta_out_of_range(name: str, value: float, words: str) -> None:
    assert problems({**DPO, "_target_": f"{PACKAGE}.{name}", "beta": value}) == [f"loss.beta must be {words}, got {value}"]


def test_all_ranges_of_a_function_are_reported_together() -> None:
    assert problems({**KTO, "beta": -0.5, "desirable_weight": -1, "undesirable_weight": -2}) == [
        "loss.beta must be > 0, got -0.5",
        "loss.desirable_weight must be >= 0, got -1",
        "loss.undesirable_weight must be >= 0, got -2",
    ]
    simpo = {"_target_": f"{PACKAGE}.reference_free.simpo", "beta": 0.0, "gamma_beta_ratio": -0.5}
    assert problems(simpo) == ["loss.beta must be > 0, got 0", "loss.gamma_beta_ratio must be >= 0, got -0.5"]


def test_a_range_problem_of_a_term_names_the_terms_own_key() -> None:
    inner = {"terms": {"dpo": {**DPO, "beta": -1}}, "weights": {"dpo": 1.0}}
    node = {"terms": {"inner": inner, "kto": {**KTO, "beta": 0}}, "weights": {"inner": 1.0, "kto": 1.0}}
    assert problems(node) == ["loss.terms.inner.terms.dpo.beta must be > 0, got -1", "loss.terms.kto.beta must be > 0, got 0"]


ESTIMATED_LOSS = """
class Moments(NamedTuple):
    mean: Tensor
    std: Tensor

def moments(policy_chosen_mean_logps: PerExample, *, decay: float) -> Moments:
    if not 0 <= decay < 1:
        raise ValueError(f"loss.decay must be in [0, 1), got {decay}")
    if policy_chosen_mean_logps.numel() < 2:
        raise ValueError(f"needs a global batch of at least 2 pairs, got {policy_chosen_mean_logps.numel()}")
    return Moments(policy_chosen_mean_logps.mean(), policy_chosen_mean_logps.std().clamp(min=1e-6))

def alpha_dpo(policy_chosen_mean_logps: PerExample, gap: Moments) -> ObjectiveOutput:
    return ObjectiveOutput((policy_chosen_mean_logps - gap.mean) / gap.std, {})
"""


def test_an_estimator_that_needs_two_pairs(user_module: WriteModule) -> None:
    name = user_module(ESTIMATED_LOSS)
    node = {"_target_": f"{name}.alpha_dpo", "gap": {"_target_": f"{name}.moments", "decay": 0.5}}
    assert problems(node, batch_size=2) == []
    assert problems(node, batch_size=1) == ["alpha_dpo needs a global batch of at least 2 pairs, got 1"]
    gap = {**node["gap"], "decay": 2}
    assert problems({"terms": {"a": {**node, "gap": gap}}, "weights": {"a": 1}}) == ["loss.terms.a.gap.decay must be in [0, 1), got 2.0"]


def test_a_named_tuple_reaches_the_loss_as_one(user_module: WriteModule) -> None:
    """Means -2 and -4: the mean is -3, the standard deviation (over n - 1) the square root of 2."""
    name = user_module(ESTIMATED_LOSS)
    objective = build_objective({"_target_": f"{name}.alpha_dpo", "gap": {"_target_": f"{name}.moments", "decay": 0.5}}, batch_size=2)
    statistics, states = objective.estimate({"detached_policy_chosen_mean_logps": column(-2, -4)}, {}, {})
    assert states == {}
    (output,) = objective.evaluate({"policy_chosen_mean_logps": column(-4)}, {}, statistics, torch.tensor([1]))
    assert output.output.loss.item() == pytest.approx(-1 / 2**0.5)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return policy_chosen_logps", "must return an ObjectiveOutput, got Tensor"),
        ("return ObjectiveOutput(policy_chosen_logps.mean(), {})", r"the loss must hold one value per example \(4,\), got shape \(\)"),
        ("return ObjectiveOutput(policy_chosen_logps, {'image': policy_chosen_logps})", "'image' is no view; rewards are kept by chosen, "),
        (
            "return ObjectiveOutput(policy_chosen_logps, {'chosen': policy_chosen_logps[:1]})",
            r"the reward chosen must hold one value per example \(4,\), got shape \(1,\)",
        ),
        ("return ObjectiveOutput(policy_chosen_logps.detach(), {})", "no gradient reaches policy_chosen_logps; ask for detached_policy_ch"),
        ("return ObjectiveOutput(policy_chosen_logps + undefined, {})", r"failed on made-up values .* \(NameError: name 'undefined'"),
        ("raise ValueError('wants more')", "broken wants more"),
    ],
)
def test_a_broken_body(user_module: WriteModule, body: str, message: str) -> None:
    name = user_module(f"def broken(policy_chosen_logps: PerExample):\n    {body}\n")
    with pytest.raises(InputError, match=message):
        build_objective({"_target_": f"{name}.broken"}, batch_size=4)


def test_a_tensor_that_takes_no_part(user_module: WriteModule) -> None:
    name = user_module("def half(policy_chosen_logps, policy_rejected_logps):\n    return ObjectiveOutput(-policy_chosen_logps, {})\n")
    assert problems({"_target_": f"{name}.half"}) == [
        "half: no gradient reaches policy_rejected_logps; ask for detached_policy_rejected_logps where it is meant to carry none"
    ]


@pytest.mark.parametrize(
    ("arguments", "value", "message"),
    [
        ("", "chosen_lengths[:1]", "odd must return a scalar, one value per example (4,), or a named tuple of these, got shape (1,)"),
        ("", "1.0", "odd must return a tensor or a named tuple of tensors, got float"),
        ("", "(chosen_lengths, 1)", "odd must return a tensor or a named tuple of tensors, got int"),
        (", previous", "chosen_lengths", "odd asks for its previous state, so it must return the pair (value, new state)"),
        (", previous", "(chosen_lengths, 1)", "odd asks for its previous state, so it must return the pair (value, new state)"),
    ],
)
def test_an_estimator_that_returns_something_else(user_module: WriteModule, arguments: str, value: str, message: str) -> None:
    name = user_module(
        f"def odd(chosen_lengths{arguments}):\n    return {value}\n\n"
        "def loss(policy_chosen_logps, scale):\n    return ObjectiveOutput(policy_chosen_logps * scale, {})\n"
    )
    assert problems({"_target_": f"{name}.loss", "scale": {"_target_": f"{name}.odd"}}) == [message]


def test_a_loss_over_tokens(user_module: WriteModule) -> None:
    name = user_module("def tokens(policy_chosen_token_logps):\n    return ObjectiveOutput(-policy_chosen_token_logps.sum(dim=1), {})\n")
    objective = build_objective({"_target_": f"{name}.tokens"}, batch_size=2)
    (output,) = objective.evaluate({"policy_chosen_token_logps": column(-1, -2, -3).expand(2, 3)}, {}, {}, torch.arange(2))
    torch.testing.assert_close(output.output.loss, column(6, 6))


def test_a_loss_that_mixes_examples_is_refused(user_module: Callable[[str], str]) -> None:
    module = user_module("""
def coupled(policy_chosen_logps: PerExample) -> ObjectiveOutput:
    return ObjectiveOutput(policy_chosen_logps.mean() - policy_chosen_logps, {})


def lonely(policy_chosen_logps: PerExample) -> ObjectiveOutput:
    return ObjectiveOutput(-policy_chosen_logps / policy_chosen_logps.detach(), {})
""")
    (problem,) = problems_of({"_target_": f"{module}.coupled"}, batch_size=4)
    assert problem.startswith(
        "coupled: the loss of an example changes with the examples beside it, so it would depend on trainer.micro_batch"
    )
    assert problems_of({"_target_": f"{module}.lonely"}, batch_size=4) == []
    assert problems_of({"_target_": f"{module}.coupled"}, batch_size=1) == []  # nobody is beside it


def test_a_loss_that_is_not_finite_is_refused(user_module: Callable[[str], str]) -> None:
    module = user_module("""
def broken(policy_chosen_logps: PerExample, scale: PerExample) -> ObjectiveOutput:
    return ObjectiveOutput(-policy_chosen_logps / scale, {})


def scale_of(chosen_lengths: PerExample) -> PerExample:
    return chosen_lengths * 0
""")
    node = {"_target_": f"{module}.broken", "scale": {"_target_": f"{module}.scale_of"}}
    assert problems_of(node, batch_size=2) == ["broken: the loss is inf on made-up values; is a setting or a fixed statistic 0?"]
