"""Laws of KTO on pairs; those of KTO on single answers stand in test_loss_laws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_world import loss_node
from torch import Tensor

from medvlm_dpo.objectives.kto import kto, kto_pair
from medvlm_dpo.objectives.statistics import PairKl
from medvlm_dpo.objectives.terms import problems_of
from medvlm_dpo.vocab import ObjectiveOutput

logps = st.floats(-50, 0)
betas = st.floats(0.01, 2)
divergences = st.floats(0, 20)


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def pair_of(chosen: float, rejected: float, chosen_kl: float, rejected_kl: float, beta: float) -> ObjectiveOutput:
    """The loss of two log-ratios."""
    return kto_pair(one(chosen), one(rejected), one(0), one(0), PairKl(number(chosen_kl), number(rejected_kl)), beta=beta)


@given(logps, logps, betas)
def test_one_half_where_policy_and_reference_agree(chosen: float, rejected: float, beta: float) -> None:
    same = (one(chosen), one(rejected))
    output = kto_pair(*same, *same, PairKl(number(0), number(0)), beta=beta)
    assert output.loss.item() == pytest.approx(0.5, rel=1e-12)
    assert output.rewards["chosen"].item() == output.rewards["rejected"].item() == 0


@given(logps, logps, divergences, divergences, betas)
def test_swapping_the_answers_gives_what_is_left_to_one(a: float, b: float, chosen_kl: float, rejected_kl: float, beta: float) -> None:
    loss = pair_of(a, b, chosen_kl, rejected_kl, beta).loss
    torch.testing.assert_close(pair_of(b, a, rejected_kl, chosen_kl, beta).loss, 1 - loss)
    assert 0 <= loss.item() <= 1


@given(logps, logps, divergences, betas)
def test_with_one_reference_point_it_is_kto(a: float, b: float, divergence: float, beta: float) -> None:
    values = (one(a), one(b), one(0), one(0))
    whole = kto(*values, one(1), one(1), number(divergence), beta=beta, desirable_weight=1.0, undesirable_weight=1.0)
    torch.testing.assert_close(pair_of(a, b, divergence, divergence, beta).loss, whole.loss)


@given(logps, logps, divergences, divergences, betas, st.floats(0.01, 10))
def test_a_likelier_chosen_answer_never_costs(a: float, b: float, chosen_kl: float, rejected_kl: float, beta: float, more: float) -> None:
    before = pair_of(a, b, chosen_kl, rejected_kl, beta).loss
    assert pair_of(a + more, b, chosen_kl, rejected_kl, beta).loss <= before
    assert pair_of(a, b - more, chosen_kl, rejected_kl, beta).loss <= before


def test_ranges_name_their_keys() -> None:
    assert problems_of(loss_node("kto_pair", "loss.beta=0"), batch_size=4) == ["loss.beta must be > 0, got 0"]
    assert problems_of(loss_node("kto", "loss.beta=-1", "loss.desirable_weight=-2", "loss.undesirable_weight=inf"), batch_size=4) == [
        "loss.beta must be > 0, got -1",
        "loss.desirable_weight must be >= 0, got -2",
        "loss.undesirable_weight must be a finite number >= 0, got inf",
    ]
    (problem,) = problems_of({**loss_node("kto_pair"), "pair_kl": 0.0}, batch_size=4)
    assert problem == "kto_pair.pair_kl is a named tuple; give an estimator, not a number"
