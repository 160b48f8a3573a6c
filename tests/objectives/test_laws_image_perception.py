"""Laws of the perception terms, for all numbers."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medvlm_dpo.objectives.image_perception import perception, perception_k3

FOUR = torch.tensor([4.0], dtype=torch.float64)
tokens = st.lists(st.floats(-10, 0), min_size=4, max_size=4)
kls = st.lists(st.floats(0, 3), min_size=4, max_size=4)


def row(values: Sequence[float]) -> Tensor:
    return torch.tensor([list(values)], dtype=torch.float64)


@given(kls, st.floats(0.05, 2))
def test_perception_is_minus_the_mean_of_limited_divergences(values: list[float], max_kl: float) -> None:
    output = perception(row(values), FOUR, max_kl=max_kl)
    assert output.loss.item() == pytest.approx(-sum(min(value, max_kl) for value in values) / 4, rel=1e-9, abs=1e-12)
    assert -max_kl * (1 + 1e-12) <= output.loss.item() <= 0
    assert output.rewards == {}


@given(kls, st.floats(0.01, 1))
def test_a_larger_divergence_never_raises_perception(values: list[float], more: float) -> None:
    before = perception(row(values), FOUR, max_kl=0.5).loss
    assert perception(row([values[0] + more, *values[1:]]), FOUR, max_kl=0.5).loss <= before


@given(tokens, tokens, st.floats(0.05, 20))
def test_perception_k3_lies_between_minus_its_limit_and_0(true: list[float], corrupt: list[float], max_kl: float) -> None:
    output = perception_k3(row(true), row(corrupt), FOUR, max_kl=max_kl)
    assert -max_kl * (1 + 1e-12) <= output.loss.item() <= 1e-12
    assert output.rewards == {}


@given(tokens)
def test_perception_k3_is_0_where_the_image_makes_no_difference(values: list[float]) -> None:
    assert perception_k3(row(values), row(values), FOUR, max_kl=10.0).loss.item() == 0


@pytest.mark.parametrize(("true", "corrupt", "sign"), [(-1.0, -2.0, -1), (-2.0, -1.0, 1), (-1.0, -14.0, 0), (-14.0, -1.0, 0)])
def test_perception_k3_pushes_the_true_image_away_from_the_corrupted_one_up_to_its_limit(true: float, corrupt: float, sign: int) -> None:
    values = row([true]).requires_grad_(True)
    (gradient,) = torch.autograd.grad(perception_k3(values, row([corrupt]), FOUR / 4, max_kl=10.0).loss.sum(), values)
    assert torch.sign(gradient).item() == sign
    assert math.isfinite(gradient.item())


def test_perception_k3_estimates_the_divergence_over_tokens_drawn_from_the_true_side() -> None:
    """The mean over p of exp(u) - u - 1 with u = log q - log p is exactly KL(p, q)."""
    p, q = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64), torch.tensor([0.5, 0.1, 0.4], dtype=torch.float64)
    estimates = -perception_k3(p.log().unsqueeze(1), q.log().unsqueeze(1), torch.ones_like(p), max_kl=10.0).loss
    torch.testing.assert_close((p * estimates).sum(), (p * (p / q).log()).sum())


@given(kls, st.integers(1, 6))
def test_padding_counts_for_nothing(values: list[float], padding: int) -> None:
    padded = [*values, *[0.0] * padding]
    assert perception(row(padded), FOUR, max_kl=0.2).loss == perception(row(values), FOUR, max_kl=0.2).loss
    logs, less = [-value for value in values], [-2 * value for value in values]
    longer = perception_k3(row([*logs, *[0.0] * padding]), row([*less, *[0.0] * padding]), FOUR, max_kl=0.2)
    torch.testing.assert_close(longer.loss, perception_k3(row(logs), row(less), FOUR, max_kl=0.2).loss, rtol=1e-12, atol=1e-15)
