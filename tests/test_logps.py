"""Log-probabilities: a naive loop in float64 is the law."""

import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medvlm_dpo.logps import (
    FUNCTIONS,
    answer_lengths,
    collision_logps,
    forward_kl,
    hallucinated_logps,
    image_kl,
    label_logps,
    log_probs,
    padded,
    served_tensors,
    top_wrong_logps,
)
from medvlm_dpo.vocab import BASES, TENSOR_NAMES, Batch, Rows

NAMES = {name: TENSOR_NAMES[name] for name in TENSOR_NAMES if "_chosen_" in name or "_rejected_" in name}
NAMES = {name: parts for name, parts in NAMES.items() if parts.view in ("chosen", "rejected") and parts.base == "logps"}
LAW = settings(max_examples=40, deadline=None, derandomize=True)


def make_batch(lengths: list[int], chosen: list[int], rejected: list[int]) -> Batch:
    """Answers of given lengths; `chosen` and `rejected` name the answer of every example, -1 for none."""
    index = torch.tensor([answer for answer, length in enumerate(lengths) for _ in range(length)], dtype=torch.long)
    empty = torch.zeros((0,), dtype=torch.long)
    rows = Rows(
        input_ids=torch.zeros((len(lengths), 1), dtype=torch.long),
        padding_mask=torch.ones((len(lengths), 1), dtype=torch.bool),
        pictures=torch.zeros((1, 3, 2, 2)),
        image_rows=empty,
        predictor_rows=index,
        predictor_columns=index,
        labels=index,
        answer_index=index,
        num_answers=len(lengths),
    )
    answers = {"chosen": torch.tensor(chosen), "rejected": torch.tensor(rejected)}
    ids = tuple(f"e{place}" for place in range(len(chosen)))
    return Batch(rows, answers, {}, ids, torch.arange(len(chosen)))


@st.composite
def worlds(draw: Any) -> tuple[Batch, Tensor, Tensor, list[int]]:
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=6))
    num_examples = draw(st.integers(1, 5))
    answers = st.lists(st.integers(-1, len(lengths) - 1), min_size=num_examples, max_size=num_examples)
    batch = make_batch(lengths, draw(answers), draw(answers))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    policy, reference = (-5 * torch.rand(sum(lengths), generator=generator, dtype=torch.float64) for _ in range(2))
    return batch, policy, reference, lengths


def naive(name: str, batch: Batch, policy: Tensor, reference: Tensor, lengths: list[int]) -> list[Any]:
    parts = NAMES[name]
    source = (reference if parts.model == "reference" else policy).tolist()
    found: list[Any] = []
    for answer in batch.answers[parts.view].tolist():
        start = sum(lengths[:answer]) if answer >= 0 else 0
        tokens = source[start : start + lengths[answer]] if answer >= 0 else []
        if parts.reduction == "token_":
            found.append(tokens + [0.0] * (max(lengths) - len(tokens)))
        else:
            total = math.fsum(tokens)
            found.append(total / max(1, len(tokens)) if parts.reduction == "mean_" else total)
    return found


@LAW
@given(worlds())
def test_every_tensor_equals_a_naive_loop(world: tuple[Batch, Tensor, Tensor, list[int]]) -> None:
    batch, policy, reference, lengths = world

    served = served_tensors(NAMES.values(), batch, {"policy": {"logps": policy}, "reference": {"logps": reference}})

    assert served.keys() == NAMES.keys()
    for name, values in served.items():
        expected = torch.tensor(naive(name, batch, policy, reference, lengths), dtype=torch.float64)
        torch.testing.assert_close(values, expected, rtol=1e-14, atol=1e-14)


@LAW
@given(worlds())
def test_padding_and_absent_answers_are_exactly_zero(world: tuple[Batch, Tensor, Tensor, list[int]]) -> None:
    batch, policy, reference, lengths = world
    served = served_tensors(NAMES.values(), batch, {"policy": {"logps": policy}, "reference": {"logps": reference}})

    for view in ("chosen", "rejected"):
        tokens = served[f"policy_{view}_token_logps"]
        for row, answer in enumerate(batch.answers[view].tolist()):
            assert not tokens[row, lengths[answer] if answer >= 0 else 0 :].any()
            if answer < 0:
                assert served[f"policy_{view}_logps"][row] == 0
                assert served[f"reference_{view}_mean_logps"][row] == 0


def test_only_the_policy_carries_gradient_and_absent_answers_give_none() -> None:
    batch = make_batch([2, 3], chosen=[0, -1], rejected=[1, 1])
    policy = torch.randn(5, requires_grad=True)
    reference = torch.randn(5, requires_grad=True)

    served = served_tensors(NAMES.values(), batch, {"policy": {"logps": policy}, "reference": {"logps": reference}})

    assert {name for name, values in served.items() if values.requires_grad} == {name for name in NAMES if name.startswith("policy_")}
    served["policy_chosen_logps"].sum().backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == [1, 1, 0, 0, 0]


def test_sums_of_float32_values_are_float64() -> None:
    values = torch.full((3000,), -1 / 3)
    batch = make_batch([3000], chosen=[0], rejected=[0])

    served = served_tensors([NAMES["policy_chosen_logps"]], batch, {"policy": {"logps": values}})["policy_chosen_logps"]

    assert served.dtype == torch.float64
    assert abs(float(served[0]) - 3000 * float(values[0])) < 1e-9


def test_empty_answer_is_an_error_not_a_mean_of_nothing() -> None:
    batch = make_batch([2, 0], chosen=[0, 1], rejected=[0, 0])

    with pytest.raises(ValueError, match=r"empty response in answers \[1\]"):
        answer_lengths(batch)
    with pytest.raises(ValueError, match="empty response"):
        served_tensors([NAMES["policy_chosen_mean_logps"]], batch, {"policy": {"logps": torch.zeros(2)}})


def test_padded_rows_keep_order() -> None:
    values = padded(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 1, 1, 1]), 2)

    assert values.tolist() == [[1, 0, 0], [2, 3, 4]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_label_logps_are_a_softmax_in_float32_or_better(dtype: torch.dtype) -> None:
    hidden = (4 * torch.randn((6, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(dtype)
    weight = torch.randn((9, 5), generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    labels = torch.tensor([0, 8, 3, 3, 1, 5])

    values = label_logps(log_probs(hidden, lambda states: states @ weight.T), labels)

    logits = (hidden @ weight.T).double()
    expected = [
        float(row[label] - math.log(sum(math.exp(x) for x in row.tolist()))) for row, label in zip(logits, labels.tolist(), strict=True)
    ]
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        values.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5
    )


def test_bases_by_hand() -> None:
    """p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): KL(p, q) = 1/2 ln 2 - 1/4 ln 2 = 1/4 ln 2; sum of p squared 3/8."""
    p, q = (torch.tensor([row], dtype=torch.float64).log() for row in ([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]))
    label = torch.tensor([0])
    expected = {
        "logps": math.log(0.5),
        "collision_logps": math.log(3 / 8),
        "top_wrong_logps": math.log(0.25),
        "hallucinated_logps": math.log(0.25),
        "image_kl": 0.25 * math.log(2),
        "forward_kl": 0.25 * math.log(2),
    }
    found = {
        "logps": label_logps(p, label),
        "collision_logps": collision_logps(p),
        "top_wrong_logps": top_wrong_logps(p, label),
        "hallucinated_logps": hallucinated_logps(p, q),
        "image_kl": image_kl(p, q),
        "forward_kl": forward_kl(p, q),
    }
    assert found.keys() == FUNCTIONS.keys() == BASES.keys()
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)
    skewed = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
    assert float(image_kl(p, skewed)) == pytest.approx(sum(a * math.log(a / b) for a, b in ((0.5, 0.7), (0.25, 0.2), (0.25, 0.1))))
    assert float(forward_kl(p, skewed)) == pytest.approx(sum(b * math.log(b / a) for a, b in ((0.5, 0.7), (0.25, 0.2), (0.25, 0.1))))
    assert float(top_wrong_logps(skewed, torch.tensor([2]))) == pytest.approx(math.log(0.7))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e2, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bases_are_finite_with_finite_gradients(scale: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, others = ((scale * torch.randn((5, 7), generator=generator, dtype=torch.float64)).to(dtype) for _ in range(2))
    logits.requires_grad_(True)
    own, other, labels = log_probs(logits, lambda x: x), log_probs(others, lambda x: x), torch.tensor([0, 6, 3, 3, 1])
    inputs = {"policy": own, "labels": labels, "corrupt": other, "reference": other}
    for function in FUNCTIONS.values():
        value = function(*(inputs[name] for name in inspect.signature(function).parameters))
        (gradient,) = torch.autograd.grad(value.sum(), logits, retain_graph=True)
        assert bool(torch.isfinite(value).all())
        assert bool(torch.isfinite(gradient).all())
