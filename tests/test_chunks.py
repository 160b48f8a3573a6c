"""Values in chunks: those of one pass over everything, gradients too, while nothing of tokens x vocabulary is ever there or kept."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from medvlm_dpo.chunks import Compared, Wanted, token_values
from medvlm_dpo.vocab import BASES

HIDDEN, VOCABULARY = 5, 11
ALL = sorted(BASES)
LAW = settings(max_examples=60, deadline=None, derandomize=True)


def direct(hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], compared: Compared) -> dict[str, Tensor]:
    """Every base from the whole distributions, by its definition."""
    own = head(hidden).log_softmax(-1)
    everywhere = torch.arange(len(labels))
    others = own.clone()
    others[everywhere, labels] = -torch.inf
    found = {
        "logps": own[everywhere, labels],
        "collision_logps": own.exp().square().sum(-1).log(),
        "top_wrong_logps": others.max(-1).values,
    }
    if compared.corrupt is not None:
        corrupt = head(compared.corrupt).log_softmax(-1).detach()
        found["hallucinated_logps"] = own[everywhere, corrupt.argmax(-1)]
        found["image_kl"] = (own.exp() * (own - corrupt)).sum(-1)
    if compared.reference is not None:
        reference = head(compared.reference).log_softmax(-1).detach()
        found["forward_kl"] = (reference.exp() * (reference - own)).sum(-1)
    return found


class Made:
    """Random states of some tokens, in float64, and a head that counts the rows it is given."""

    def __init__(self, tokens: int, *, vocabulary: int = VOCABULARY, hidden: int = HIDDEN, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.weight, self.hidden = normal(vocabulary, hidden), normal(tokens, hidden).requires_grad_(True)
        self.labels = torch.randint(vocabulary, (tokens,), generator=generator)
        self.compared = Compared(normal(tokens, hidden), normal(tokens, hidden))
        self.factors = {base: normal(tokens) for base in ALL}
        self.calls: list[tuple[int, bool]] = []

    def head(self, hidden: Tensor) -> Tensor:
        self.calls.append((len(hidden), hidden.requires_grad))
        return hidden @ self.weight.T

    def values(self, wanted: Mapping[str, Wanted], chunk: int) -> Mapping[str, Tensor]:
        entries = chunk * len(self.weight) + len(self.weight) // 2  # what is left over fits no further token
        return token_values(self.hidden, self.labels, wanted, self.head, compared=self.compared, chunk_entries=entries)

    def gradient(self, values: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> Tensor:
        total = torch.stack([(values[base] * self.factors[base])[live[base]].sum() for base in values]).sum()
        (gradient,) = torch.autograd.grad(total, self.hidden)
        return gradient


def everything(tokens: int, bases: list[str] = ALL) -> dict[str, Wanted]:
    return {base: Wanted(torch.ones(tokens, dtype=torch.bool), torch.ones(tokens, dtype=torch.bool)) for base in bases}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# --- values and gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("base", ALL)
def test_each_base_is_that_of_one_pass(base: str, chunk: int) -> None:
    made = Made(7)
    live = {base: torch.ones(7, dtype=torch.bool)}
    expected = direct(made.hidden, made.labels, made.head, made.compared)

    values = made.values(everything(7, [base]), chunk)

    close(values[base], expected[base])
    close(made.gradient(values, live), made.gradient({base: expected[base]}, live))


@LAW
@given(st.data(), st.integers(1, 9), st.integers(1, 10))
def test_any_mixture_of_bases_and_of_tokens_with_and_without_gradient(data: st.DataObject, tokens: int, chunk: int) -> None:
    made = Made(tokens, seed=tokens)
    bases = data.draw(st.lists(st.sampled_from(ALL), min_size=1, unique=True))
    flags = st.lists(st.integers(0, 2), min_size=tokens, max_size=tokens)  # not asked, asked, asked with gradient
    drawn = {base: torch.tensor(data.draw(flags)) for base in bases}
    wanted = {base: Wanted(kind > 0, kind > 1) for base, kind in drawn.items()}
    live = {base: kind > 1 for base, kind in drawn.items()}
    expected = direct(made.hidden, made.labels, made.head, made.compared)

    values = made.values(wanted, chunk)

    for base in bases:
        close(values[base], torch.where(wanted[base].tokens, expected[base], 0.0))
    everywhere = {base: torch.ones(tokens, dtype=torch.bool) for base in bases}
    if any(bool(kind.any()) for kind in live.values()):
        own = made.gradient({base: expected[base] for base in bases}, live)
        close(made.gradient(values, everywhere), own)  # tokens without gradient give none, whoever asks
    else:
        assert not any(value.requires_grad for value in values.values())


def test_the_gradient_is_scaled_by_what_comes_back() -> None:
    """A second use of the same values, and a function of them that is no sum."""
    made = Made(6)
    values, expected = made.values(everything(6), 2), direct(made.hidden, made.labels, made.head, made.compared)

    totals = [torch.stack([value[base].square().sum() * place for place, base in enumerate(ALL)]).sum() for value in (values, expected)]
    found, whole = (torch.autograd.grad(total, made.hidden, retain_graph=True)[0] for total in totals)

    close(found, whole)
    close(torch.autograd.grad(totals[0], made.hidden)[0], whole)


def test_a_second_derivative_is_refused() -> None:
    hidden = torch.randn((3, 4), dtype=torch.float64, requires_grad=True)
    everything = torch.ones(3, dtype=torch.bool)
    weight = torch.randn((7, 4), dtype=torch.float64)
    values = token_values(
        hidden, torch.tensor([0, 1, 2]), {"logps": Wanted(everything, everything)}, lambda states: states @ weight.T, compared=Compared()
    )["logps"]
    scale = torch.ones(3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad((values * scale).sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_values_of_lower_precision_are_float32(dtype: torch.dtype) -> None:
    made = Made(6)
    hidden = made.hidden.detach().to(dtype).requires_grad_(True)

    def head(states: Tensor) -> Tensor:
        return states @ made.weight.to(dtype).T

    values = token_values(hidden, made.labels, everything(6, ["logps"]), head, compared=Compared(), chunk_entries=2 * VOCABULARY)
    (gradient,) = torch.autograd.grad(values["logps"].sum(), hidden)

    assert values["logps"].dtype == torch.float32
    assert gradient.dtype == dtype
    expected = head(hidden).float().log_softmax(-1)[torch.arange(6), made.labels]
    torch.testing.assert_close(values["logps"], expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), hidden)[0])


@pytest.mark.parametrize(("base", "lacking"), [("image_kl", "corrupted image's"), ("forward_kl", "reference's")])
def test_a_base_without_what_it_reads_is_a_mistake_of_the_host(base: str, lacking: str) -> None:
    made = Made(3)
    with pytest.raises(ValueError, match=f"{base} was asked for without the {lacking} hidden states"):
        token_values(made.hidden, made.labels, everything(3, [base]), made.head, compared=Compared())


# --- work --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, 4, 10])
def test_the_head_sees_every_token_once_and_the_backward_pass_does_not_call_it(chunk: int) -> None:
    made = Made(10)

    values = made.values(everything(10, ["logps", "collision_logps", "top_wrong_logps"]), chunk)
    calls = [call for call in made.calls if call[1]]
    made.gradient(values, {base: torch.ones(10, dtype=torch.bool) for base in values})

    sizes = [min(chunk, 10 - start) for start in range(0, 10, chunk)]
    assert calls == [(size, True) for size in sizes]
    assert sum(rows for rows, _ in made.calls) <= 10 + 1, "one more token tells how large the vocabulary is"


def test_another_distribution_costs_one_more_product_without_gradient() -> None:
    made = Made(10)

    made.values(everything(10, ["image_kl", "logps"]), 5)

    assert [rows for rows, live in made.calls if live] == [5, 5]
    assert sum(rows for rows, live in made.calls if not live) <= 10 + 1


def test_tokens_that_nobody_asks_for_cost_nothing() -> None:
    made = Made(10)
    asked = torch.arange(10) < 3

    made.values({"logps": Wanted(asked, asked), "image_kl": Wanted(torch.arange(10) == 0, asked & False)}, 10)

    assert sorted(rows for rows, _ in made.calls) == [1, 1, 3], "the size of the vocabulary, the corrupted image's token, three of logps"


def test_without_gradient_no_graph_is_made() -> None:
    made = Made(4)
    with torch.no_grad():
        values = made.values(everything(4), 2)

    assert not any(value.requires_grad for value in values.values())
    assert not any(live for _, live in made.calls)


# --- memory ------------------------------------------------------------------------------------------------------------


class Ledger(TorchDispatchMode):
    """Bytes of every tensor made inside it: the largest one, the most that were alive together, and those alive now.

    Args:
        weight: of the head, which was there before; its views count for nothing.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.largest = self.most = 0
        self._weight = weight.untyped_storage()._cdata
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                new = storage._cdata not in self._made or self._made[storage._cdata][0].expired()
                if new and storage._cdata != self._weight:
                    self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                    self.largest = max(self.largest, storage.nbytes())
        self.most = max(self.most, self.alive())
        return found

    def alive(self) -> int:
        """Bytes of the tensors that something still holds."""
        self._made = {key: (reference, size) for key, (reference, size) in self._made.items() if not reference.expired()}
        return sum(size for _, size in self._made.values())


def memory(made: Made, bases: list[str], chunk: int) -> tuple[Ledger, int]:
    """What values and backward pass take; and what lies between the two."""
    tokens = len(made.labels)
    wanted = everything(tokens, bases)
    with Ledger(made.weight) as ledger:
        values = made.values(wanted, chunk)
        between = ledger.alive()
        made.gradient(values, {base: own.live for base, own in wanted.items()})
    return ledger, between


@pytest.mark.parametrize("base", ALL)
@pytest.mark.parametrize("vocabulary", [32_000, 152_000])
def test_memory_is_that_of_a_chunk_however_many_tokens_there_are(vocabulary: int, base: str) -> None:
    hidden, chunk = 3, 2
    one_chunk = chunk * vocabulary * 8

    short, long = (memory(Made(tokens, vocabulary=vocabulary, hidden=hidden), [base], chunk) for tokens in (4, 24))

    for ledger, between in (short, long):
        assert ledger.largest <= one_chunk
        assert between < vocabulary * 8 / 10, "less than a tenth of one token's distribution waits for the backward pass"
    assert long[0].most < short[0].most + vocabulary * 8 / 10


def test_all_bases_together_keep_nothing_of_the_vocabularys_size_either() -> None:
    ledger, between = memory(Made(24, vocabulary=32_000, hidden=3), ALL, 2)

    assert ledger.largest <= 2 * 32_000 * 8
    assert between < 32_000 * 8 / 10


def test_the_ledger_sees_what_a_computation_in_one_piece_takes() -> None:
    made = Made(24, vocabulary=32_000, hidden=3)
    with Ledger(made.weight) as ledger:
        values = direct(made.hidden, made.labels, made.head, made.compared)
        assert ledger.alive() > 24 * 32_000 * 8
    assert ledger.largest >= 24 * 32_000 * 8
    assert values.keys() == set(ALL)


def test_the_default_chunk_is_small_enough_for_either_vocabulary() -> None:
    """64 MiB of float32: 524 tokens of 32,000, 110 of 152,064."""
    for vocabulary in (32_000, 152_064):
        made = Made(1, vocabulary=vocabulary, hidden=1)
        rows: list[int] = []

        def head(states: Tensor, weight: Tensor = made.weight, rows: list[int] = rows) -> Tensor:
            rows.append(len(states))
            return torch.zeros((1, 1), dtype=torch.float32).expand(len(states), len(weight))

        tokens = 1200
        token_values(
            torch.zeros(tokens, 1), torch.zeros(tokens, dtype=torch.long), everything(tokens, ["logps"]), head, compared=Compared()
        )
        assert max(rows) * vocabulary <= 2**24
        assert max(rows) * vocabulary > 2**24 * 0.98, "and not smaller than need be"
