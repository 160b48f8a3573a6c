"""Laws of the losses that weight changed tokens: ddpo, ddpo_sum and chip_released."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.contrastive import dpo
from medvlm_dpo.objectives.segment import chip_released, ddpo, ddpo_sum
from medvlm_dpo.vocab import ObjectiveOutput

WIDTH = 6
CHIP = {"beta": 0.1, "segment_weight": 4.0, "token_weight": 0.1}
betas = st.floats(0.01, 2)
weights = st.floats(0.1, 8)
seeds = st.integers(0, 10_000)


class Tokens:
    """Made-up token values of three examples with answers of 1 to 6 tokens: policy and reference of chosen, rejected, chosen_corrupt."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.lengths = [torch.randint(1, WIDTH + 1, (3,), generator=generator).double() for _ in range(2)]
        real = [torch.arange(WIDTH) < length[:, None] for length in self.lengths]
        self.masks = [(torch.rand((3, WIDTH), generator=generator) < 0.4).double() * inside for inside in real]
        made = [-5 * torch.rand((3, WIDTH), generator=generator, dtype=torch.float64) for _ in range(6)]
        insides = [real[0], real[1], real[0], real[0], real[1], real[0]]
        self.values = [value * inside for value, inside in zip(made, insides, strict=True)]  # chosen, rejected, corrupt; policy, reference
        self.kls = list(3 * torch.rand((2, 3), generator=generator, dtype=torch.float64))

    @property
    def pair(self) -> list[Tensor]:
        return [self.values[0], self.values[1], self.values[3], self.values[4]]

    def widened(self, columns: int) -> "Tokens":
        """The same with more columns of padding."""
        wide = Tokens(0)
        wide.lengths, wide.kls = self.lengths, self.kls
        wide.masks, wide.values = ([pad(value, (0, columns)) for value in values] for values in (self.masks, self.values))
        return wide

    def agreeing(self) -> "Tokens":
        """The same with the policy equal to the reference."""
        same = self.widened(0)
        same.values = [*same.values[3:], *same.values[3:]]
        same.kls = [torch.zeros(3, dtype=torch.float64)] * 2
        return same

    def ddpo(self, beta: float, weight: float) -> ObjectiveOutput:
        return ddpo(*self.pair, *self.masks, *self.lengths, beta=beta, segment_weight=weight)

    def ddpo_sum(self, beta: float, weight: float) -> ObjectiveOutput:
        return ddpo_sum(*self.pair, *self.masks, beta=beta, segment_weight=weight)

    def chip(self, **settings: float) -> ObjectiveOutput:
        return chip_released(*self.values, *self.kls, *self.masks, **{**CHIP, **settings})


@given(seeds, betas)
def test_at_weight_1_the_sums_are_dpo_and_the_means_length_normalised(seed: int, beta: float) -> None:
    tokens = Tokens(seed)
    plain = dpo(*(value.sum(dim=1) for value in tokens.pair), beta=beta)
    torch.testing.assert_close(tokens.ddpo_sum(beta, 1.0).loss, plain.loss)
    torch.testing.assert_close(tokens.ddpo_sum(beta, 1.0).rewards, plain.rewards)
    means = [value.sum(dim=1) / length for value, length in zip(tokens.pair, [*tokens.lengths, *tokens.lengths], strict=True)]
    torch.testing.assert_close(tokens.ddpo(beta, 1.0).loss, dpo(*means, beta=beta).loss)


@given(seeds, betas, weights)
def test_the_masks_say_nothing_where_nothing_changed(seed: int, beta: float, weight: float) -> None:
    tokens = Tokens(seed)
    tokens.masks = [torch.zeros_like(mask) for mask in tokens.masks]
    assert torch.equal(tokens.ddpo(beta, weight).loss, tokens.ddpo(beta, 1.0).loss)
    assert torch.equal(tokens.ddpo_sum(beta, weight).loss, tokens.ddpo_sum(beta, 1.0).loss)
    assert torch.equal(tokens.chip(segment_weight=weight).loss, tokens.chip(segment_weight=1.0).loss)


@given(seeds, betas, weights)
def test_means_where_everything_changed_need_no_weight(seed: int, beta: float, weight: float) -> None:
    """All weights are equal then and cancel in the mean; in the sums they multiply beta."""
    tokens = Tokens(seed)
    tokens.masks = [(torch.arange(WIDTH) < length[:, None]).double() for length in tokens.lengths]
    torch.testing.assert_close(tokens.ddpo(beta, weight).loss, tokens.ddpo(beta, 1.0).loss)
    torch.testing.assert_close(tokens.ddpo_sum(beta, weight).loss, tokens.ddpo_sum(beta * weight, 1.0).loss)


@given(seeds, betas, weights, st.integers(1, 5))
def test_padding_changes_nothing(seed: int, beta: float, weight: float, columns: int) -> None:
    tokens = Tokens(seed)
    wide = tokens.widened(columns)
    for output, other in (
        (tokens.ddpo(beta, weight), wide.ddpo(beta, weight)),
        (tokens.ddpo_sum(beta, weight), wide.ddpo_sum(beta, weight)),
        (tokens.chip(beta=beta, segment_weight=weight), wide.chip(beta=beta, segment_weight=weight)),
    ):
        torch.testing.assert_close(other.loss, output.loss)
        torch.testing.assert_close(other.rewards, output.rewards)


@given(seeds, betas, weights)
def test_swapping_the_pair_turns_the_margin(seed: int, beta: float, weight: float) -> None:
    tokens, swapped = Tokens(seed), Tokens(seed)
    swapped.values = [swapped.values[index] for index in (1, 0, 2, 4, 3, 5)]
    swapped.masks, swapped.lengths = swapped.masks[::-1], swapped.lengths[::-1]
    for output, other in (
        (tokens.ddpo(beta, weight), swapped.ddpo(beta, weight)),
        (tokens.ddpo_sum(beta, weight), swapped.ddpo_sum(beta, weight)),
    ):
        torch.testing.assert_close(other.loss - output.loss, output.rewards["chosen"] - output.rewards["rejected"])


@given(seeds, betas, weights, st.floats(0.01, 10))
def test_a_likelier_chosen_and_a_less_likely_rejected_token_never_cost(seed: int, beta: float, weight: float, more: float) -> None:
    for index, change in ((0, more), (1, -more), (2, -more)):
        before, after = Tokens(seed), Tokens(seed)
        after.values[index] = after.values[index] + change * torch.nn.functional.one_hot(torch.zeros(3, dtype=torch.long), WIDTH)
        assert bool((after.chip(beta=beta, segment_weight=weight).loss <= before.chip(beta=beta, segment_weight=weight).loss).all())
        if index < 2:
            assert bool((after.ddpo(beta, weight).loss <= before.ddpo(beta, weight).loss).all())
            assert bool((after.ddpo_sum(beta, weight).loss <= before.ddpo_sum(beta, weight).loss).all())


@given(seeds, betas, weights)
def test_where_policy_and_reference_agree(seed: int, beta: float, weight: float) -> None:
    tokens = Tokens(seed).agreeing()
    for output in (tokens.ddpo(beta, weight), tokens.ddpo_sum(beta, weight), tokens.chip(beta=beta, segment_weight=weight)):
        torch.testing.assert_close(output.loss, torch.full((3,), math.log(2), dtype=torch.float64), rtol=1e-12, atol=0)
        assert all(bool((reward == 0).all()) for reward in output.rewards.values())


@given(seeds, betas)
def test_chip_as_released_without_weights_and_token_term_compares_sums(seed: int, beta: float) -> None:
    """One sigmoid around both margins: -log sigmoid(beta (h + a - c))."""
    tokens = Tokens(seed)
    chosen, rejected, corrupt = (tokens.values[index].sum(dim=1) - tokens.values[index + 3].sum(dim=1) for index in range(3))
    output = tokens.chip(beta=beta, segment_weight=1.0, token_weight=0.0)
    torch.testing.assert_close(output.loss, -logsigmoid(beta * (2 * chosen - rejected - corrupt)))


@pytest.mark.parametrize(("corrupt", "number"), [((-13.0, -12.5), 0.554355), ((-13.2, -12.3), 0.501084)])
def test_chip_as_released_without_token_term(corrupt: tuple[float, float], number: float) -> None:
    """Sums -10, -12 against -11, -11.5, and -9.7, -12.4 against -11, -11.6, whatever the divergences are."""
    policy, reference = ((-10.0, -12.0), (-11.0, -11.5)) if number > 0.52 else ((-9.7, -12.4), (-11.0, -11.6))
    values = [torch.tensor([[value, 0.0]], dtype=torch.float64) for value in (*policy, corrupt[0], *reference, corrupt[1])]
    no_masks = [torch.zeros_like(values[0])] * 2
    for kl in (0.0, 7.0):
        kls = [torch.tensor([value], dtype=torch.float64) for value in (0.3, kl)]
        output = chip_released(*values, *kls, *no_masks, beta=0.1, segment_weight=4.0, token_weight=0.0)
        assert output.loss.item() == pytest.approx(number, abs=1e-6)


def test_messages_name_the_settings() -> None:
    tokens = Tokens(0)
    for call in (tokens.ddpo, tokens.ddpo_sum):
        with pytest.raises(InputError) as raised:
            call(0.0, -2.0)
        assert raised.value.problems == ("loss.beta must be > 0, got 0", "loss.segment_weight must be > 0, got -2")
    with pytest.raises(InputError) as raised:
        tokens.chip(beta=math.inf, segment_weight=0.0, token_weight=-0.1)
    assert raised.value.problems == (
        "loss.beta must be a finite number > 0, got inf",
        "loss.segment_weight must be > 0, got 0",
        "loss.token_weight must be >= 0, got -0.1",
    )
