"""Laws of the losses that correct for the length of answers."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.contrastive import dpo
from medvlm_dpo.objectives.length import d2po, ld_dpo, ld_dpo_policy_only, r_dpo

WIDTH = 6
tokens = st.lists(st.floats(-5, 0), min_size=1, max_size=WIDTH)
betas = st.floats(0.01, 2)
shares = st.floats(0, 1)
Four = tuple[Tensor, Tensor, Tensor, Tensor]
Pair = tuple[Four, tuple[Tensor, Tensor]]


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def row(values: list[float]) -> Tensor:
    """[1, WIDTH], right-padded with 0."""
    return torch.tensor([[*values, *[0.0] * (WIDTH - len(values))]], dtype=torch.float64)


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    """Four rows of values per token (policy and reference, chosen and rejected) and the two lengths."""
    chosen, rejected = draw(tokens), draw(tokens)
    reference = [draw(st.lists(st.floats(-5, 0), min_size=len(own), max_size=len(own))) for own in (chosen, rejected)]
    rows = (row(chosen), row(rejected), row(reference[0]), row(reference[1]))
    return rows, (one(float(len(chosen))), one(float(len(rejected))))


def each(change: Callable[[Tensor], Tensor], rows: Four) -> Four:
    chosen, rejected, reference_chosen, reference_rejected = map(change, rows)
    return chosen, rejected, reference_chosen, reference_rejected


def sums(rows: Four) -> Four:
    return each(lambda values: values.sum(dim=1), rows)


@given(pairs(), betas, shares, st.floats(0.01, 1))
def test_ln_2_where_policy_and_reference_agree(pair: Pair, beta: float, share: float, decay: float) -> None:
    """Ld_dpo and d2po for any lengths, r_dpo for equal ones; ld_dpo_policy_only is off by the tail of the longer answer."""
    rows, lengths = pair
    same = (rows[0], rows[1], rows[0], rows[1])
    assert ld_dpo(*same, *lengths, beta=beta, tail_weight=share).loss.item() == pytest.approx(math.log(2))
    assert d2po(*same, beta=beta, decay=decay, first_exponent=1.0).loss.item() == pytest.approx(math.log(2))
    assert r_dpo(*sums(same), lengths[0], lengths[0], beta=beta, length_penalty=share).loss.item() == pytest.approx(math.log(2))
    output = ld_dpo_policy_only(*rows[:2], *sums(same)[2:], *lengths, beta=beta, tail_weight=share)
    shared = int(min(lengths[0].item(), lengths[1].item()))
    for view, values in zip(("chosen", "rejected"), rows[:2], strict=True):
        assert output.rewards[view].item() == pytest.approx(beta * (share - 1) * values[0, shared:].sum().item(), abs=1e-12)


@given(pairs(), betas)
def test_limits_that_are_dpo(pair: Pair, beta: float) -> None:
    """A whole tail, no penalty, no decay."""
    rows, lengths = pair
    expected = dpo(*sums(rows), beta=beta)
    for output in (
        r_dpo(*sums(rows), *lengths, beta=beta, length_penalty=0.0),
        ld_dpo(*rows, *lengths, beta=beta, tail_weight=1.0),
        ld_dpo_policy_only(*rows[:2], *sums(rows)[2:], *lengths, beta=beta, tail_weight=1.0),
        d2po(*rows, beta=beta, decay=1.0, first_exponent=3.0),
    ):
        torch.testing.assert_close(output.loss, expected.loss)
        torch.testing.assert_close(output.rewards, expected.rewards)


@given(pairs(), betas, shares)
def test_a_tail_of_weight_zero_is_cut(pair: Pair, beta: float, share: float) -> None:
    """What stands behind the shorter answer's end changes nothing; between equally long answers the weight changes nothing."""
    rows, lengths = pair
    shared = int(min(lengths[0].item(), lengths[1].item()))
    short = each(lambda values: torch.cat((values[:, :shared], torch.zeros(1, WIDTH - shared)), dim=1), rows)
    output = ld_dpo(*rows, *lengths, beta=beta, tail_weight=0.0)
    torch.testing.assert_close(output.loss, dpo(*sums(short), beta=beta).loss)
    equal = ld_dpo(*short, one(float(shared)), one(float(shared)), beta=beta, tail_weight=share)
    torch.testing.assert_close(equal.loss, output.loss)


@given(pairs(), betas, shares, st.floats(0.01, 1))
def test_swapping_the_pair_turns_the_margin(pair: Pair, beta: float, share: float, decay: float) -> None:
    """Loss(swapped) - loss is the margin of the rewards; those of r_dpo hold the lengths."""
    rows, lengths = pair

    def turned(loss: Tensor, other: Tensor, rewards: dict[str, Tensor]) -> None:
        torch.testing.assert_close(other - loss, rewards["chosen"] - rewards["rejected"])

    exchanged, exchanged_lengths = (rows[1], rows[0], rows[3], rows[2]), (lengths[1], lengths[0])
    output = ld_dpo(*rows, *lengths, beta=beta, tail_weight=share)
    turned(output.loss, ld_dpo(*exchanged, *exchanged_lengths, beta=beta, tail_weight=share).loss, output.rewards)
    output = d2po(*rows, beta=beta, decay=decay, first_exponent=0.0)
    turned(output.loss, d2po(*exchanged, beta=beta, decay=decay, first_exponent=0.0).loss, output.rewards)
    output = r_dpo(*sums(rows), *lengths, beta=beta, length_penalty=share)
    other = r_dpo(*sums(exchanged), *exchanged_lengths, beta=beta, length_penalty=share).loss
    turned(output.loss, other, output.rewards)


@given(pairs(), betas, st.floats(0.01, 1))
def test_a_longer_chosen_answer_has_its_margin_already(pair: Pair, beta: float, penalty: float) -> None:
    """The loss and the size of the gradient fall with its length."""
    rows, lengths = pair
    found: list[tuple[float, float]] = []
    for more in (0.0, 5.0):
        values = each(lambda value: value.sum(dim=1).requires_grad_(True), rows)
        loss = r_dpo(*values, lengths[0] + more, lengths[1], beta=beta, length_penalty=penalty).loss
        (gradient,) = torch.autograd.grad(loss.sum(), values[0])
        found.append((loss.item(), abs(gradient.item())))
    assert found[1][0] < found[0][0]
    assert found[1][1] < found[0][1]


@given(pairs(), betas, st.floats(0.01, 1), st.floats(0, 3))
def test_the_first_exponent_only_scales_beta(pair: Pair, beta: float, decay: float, exponent: float) -> None:
    rows, _ = pair
    shifted = d2po(*rows, beta=beta, decay=decay, first_exponent=exponent)
    torch.testing.assert_close(shifted.loss, d2po(*rows, beta=beta * decay**exponent, decay=decay, first_exponent=0.0).loss)


@given(pairs(), betas, shares, st.floats(0.01, 1), st.floats(0.01, 5), st.integers(0, WIDTH - 1))
def test_a_likelier_chosen_token_never_costs(pair: Pair, beta: float, share: float, decay: float, more: float, place: int) -> None:
    rows, lengths = pair
    likelier = rows[0].clone()
    likelier[0, place % int(lengths[0].item())] += more
    better = (likelier, rows[1], rows[2], rows[3])
    assert ld_dpo(*better, *lengths, beta=beta, tail_weight=share).loss <= ld_dpo(*rows, *lengths, beta=beta, tail_weight=share).loss
    assert d2po(*better, beta=beta, decay=decay, first_exponent=0.0).loss <= d2po(*rows, beta=beta, decay=decay, first_exponent=0.0).loss


def test_settings_out_of_range_are_named_together() -> None:
    answer, lengths = row([-1.0]), (one(1.0), one(1.0))
    rows = (answer, answer, answer, answer)
    with pytest.raises(InputError) as found:
        ld_dpo(*rows, *lengths, beta=0.0, tail_weight=1.5)
    assert list(found.value.problems) == ["loss.beta must be > 0, got 0", "loss.tail_weight must be <= 1, got 1.5"]
    with pytest.raises(InputError, match=r"loss\.tail_weight must be >= 0, got -0\.5"):
        ld_dpo_policy_only(*rows[:2], *sums(rows)[2:], *lengths, beta=0.1, tail_weight=-0.5)
    with pytest.raises(InputError) as found:
        d2po(*rows, beta=0.1, decay=1.1, first_exponent=-1.0)
    assert list(found.value.problems) == ["loss.decay must be <= 1, got 1.1", "loss.first_exponent must be >= 0, got -1"]
    with pytest.raises(InputError, match=r"loss\.length_penalty must be >= 0, got -0\.01"):
        r_dpo(*sums(rows), *lengths, beta=0.1, length_penalty=-0.01)
