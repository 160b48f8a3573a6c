"""Laws of the supervised terms and of the sums that join one to a preference loss."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_world import THREE, Golden, compute, loss_node
from torch import Tensor

from medvlm_dpo.objectives.statistics import mean_chosen_length
from medvlm_dpo.objectives.supervised import sft, sft_sum, sft_token_mean
from medvlm_dpo.objectives.terms import build_objective

MPO_TERMS = (("dpo", ()), ("bco_pair", ("loss.beta=0.1",)), ("sft_token_mean", ()))
answers = st.lists(st.tuples(st.floats(-50, 0), st.integers(1, 30)), min_size=1, max_size=6)


def columns(values: list[tuple[float, int]]) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities and lengths."""
    return tuple(torch.tensor(column, dtype=torch.float64) for column in zip(*values, strict=True))  # pyright: ignore[reportReturnType]


@given(answers)
def test_three_normalisations_of_one_likelihood(values: list[tuple[float, int]]) -> None:
    """The sum is length times the mean; the mean over the batch of the token mean is all nats over all tokens."""
    sums, lengths = columns(values)
    torch.testing.assert_close(sft_sum(sums).loss, lengths * sft(sums / lengths).loss)
    token_mean = sft_token_mean(sums, mean_chosen_length(lengths))
    torch.testing.assert_close(token_mean.loss.mean(), -sums.sum() / lengths.sum())
    assert sft(sums).rewards == sft_sum(sums).rewards == token_mean.rewards == {}


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=6), st.integers(1, 30))
def test_answers_of_one_length_make_no_difference_between_the_means(values: list[float], length: int) -> None:
    sums, lengths = columns([(value, length) for value in values])
    torch.testing.assert_close(sft_token_mean(sums, mean_chosen_length(lengths)).loss, sft(sums / lengths).loss)


@given(answers, st.floats(0.01, 10))
def test_a_likelier_answer_costs_less(values: list[tuple[float, int]], more: float) -> None:
    sums, lengths = columns(values)
    for loss, likelier in ((sft(sums), sft(sums + more)), (sft_sum(sums), sft_sum(sums + more))):
        assert bool((likelier.loss < loss.loss).all())
    length = mean_chosen_length(lengths)
    assert bool((sft_token_mean(sums + more, length).loss < sft_token_mean(sums, length).loss).all())


def test_a_supervised_weight_of_zero_leaves_the_preference_loss() -> None:
    """Dpo_nll and rpo are then dpo, and nothing is asked for on behalf of the term that is gone."""
    for name in ("dpo_nll", "rpo"):
        rest = compute(Golden(name, THREE, [], ("loss.weights.sft=0", "loss.beta=0.1")))
        torch.testing.assert_close(rest.loss, compute(Golden("dpo", THREE, [])).loss)
    alone = build_objective(loss_node("dpo_nll", "loss.weights.sft=0"), batch_size=2).demand
    assert alone == build_objective(loss_node("dpo"), batch_size=2).demand


def test_mpo_is_the_weighted_sum_of_its_three_losses() -> None:
    parts = [compute(Golden(name, THREE, [], overrides)).loss for name, overrides in MPO_TERMS]
    torch.testing.assert_close(compute(Golden("mpo", THREE, [])).loss, 0.8 * parts[0] + 0.2 * parts[1] + parts[2])
