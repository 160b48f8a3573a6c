"""Values of the starting model that are computed once and kept by content of the sequence: every loss, seed and data set shares them."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.cache.blocks import Array
from medvlm_dpo.cache.tensors import tensor_of
from medvlm_dpo.data.encoding import EncodedExample
from medvlm_dpo.logps import TokenValues, answer_lengths
from medvlm_dpo.reference import AbstractReference, StartingReference
from medvlm_dpo.scoring import HIDDEN, REFERENCE
from medvlm_dpo.vocab import BASES, Batch, TensorName, corrupt_view

VALUES_VERSION = 1  # part of every store's identity: raise it when the meaning of a stored value changes


class Column(NamedTuple):
    """One quantity per token of a view's answers: a base, or the hidden states."""

    view: str
    base: str


class Arrays(Protocol):
    """Where values lie, by key; a `BlockStore`."""

    def __contains__(self, key: str) -> bool: ...

    def __getitem__(self, key: str) -> Array: ...


def columns_of(names: Collection[TensorName]) -> frozenset[Column]:
    """What some tensors read of the reference."""
    own = {Column(name.view, name.base) for name in names if name.model == REFERENCE}
    return frozenset(own | {Column(name.view, HIDDEN) for name in names if BASES[name.base].reads_reference})


def views_of(column: Column) -> tuple[str, ...]:
    """The views whose sequences decide a column: the corrupted picture's too, where the base reads it."""
    reads_corrupt = column.base != HIDDEN and BASES[column.base].reads_corrupt
    return (column.view, corrupt_view(column.view)) if reads_corrupt else (column.view,)


def keys_of(example: EncodedExample, columns: Collection[Column]) -> dict[Column, str]:
    """Under which key each column of an example is kept; without those whose answer or picture it does not have."""
    found: dict[Column, str] = {}
    for column in sorted(columns):
        sequences = [example.sequence(view) for view in views_of(column)]
        present = [sequence.key for sequence in sequences if sequence is not None]
        if len(present) == len(sequences):
            found[column] = "/".join((column.base, *present))
    return found


class Entry(NamedTuple):
    """One answer's part of a column."""

    base: str
    key: str
    answer: int


def entries_of(batch: Batch, columns: Collection[Column]) -> Iterator[Entry]:
    """The parts of some columns that a micro-batch has, with their keys."""
    for column in sorted(columns):
        by_view = [batch.answers[view].tolist() for view in views_of(column)]
        for answers in zip(*by_view, strict=True):
            if all(answer >= 0 for answer in answers):
                yield Entry(column.base, "/".join((column.base, *(batch.answer_keys[answer] for answer in answers))), answers[0])


# --- reading -----------------------------------------------------------------------------------------------------------


class CachedReference(AbstractReference):
    """The starting model's values from a store; a micro-batch of which something is missing is computed, and nothing is stored then.

    Args:
        arrays: by key.
        dtype: of the model; stored bits of hidden states are read as this.
    """

    is_start = True

    def __init__(self, arrays: Arrays, *, dtype: torch.dtype) -> None:
        self._arrays, self._dtype = arrays, dtype
        self.num_computed = 0  # micro-batches that the store could not serve

    def values(self, backbone: AbstractBackbone, batch: Batch, names: Collection[TensorName]) -> TokenValues:
        """Read, without a forward pass."""
        columns = columns_of(names)
        entries = list(entries_of(batch, columns))
        try:
            arrays = [self._arrays[entry.key] for entry in entries]
        except KeyError:
            self.num_computed += 1
            if self.num_computed == 1:
                print("\nreference values of some examples are not in the cache; they are computed at every step")
            return StartingReference().values(backbone, batch, names)
        lengths = answer_lengths(batch).tolist()
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return {
            base: _placed(batch, [(starts[entry.answer], array) for entry, array in _of(base, entries, arrays)], self._dtype)
            for base in sorted({column.base for column in columns})
        }


def _of(base: str, entries: Sequence[Entry], arrays: Sequence[Array]) -> list[tuple[Entry, Array]]:
    return [(entry, array) for entry, array in zip(entries, arrays, strict=True) if entry.base == base]


def _placed(batch: Batch, parts: Sequence[tuple[int, Array]], dtype: torch.dtype) -> Tensor:
    like = parts[0][1] if parts else np.zeros(0, dtype=np.float32)  # unpaired data: no answer of this view in this micro-batch
    whole = np.zeros((len(batch.rows.labels), *like.shape[1:]), dtype=like.dtype)
    for start, array in parts:
        whole[start : start + len(array)] = array
    return tensor_of(whole, dtype).to(batch.rows.labels.device)


# --- whether two computations agree --------------------------------------------------------------------------------------


def distance(first: Tensor, second: Tensor, dtype: torch.dtype) -> float:
    """How far one model's values of the same tokens lie apart in two computations; not a number where one of them is none.

    The largest difference, but in bfloat16 the mean: there a batch of another shape moves single tokens by more than 0.05 nats.

    Args:
        first: values.
        second: of the same shape, with at least one entry.
        dtype: the model computes in, see `dtype_of`; values are float32 or better in any case.
    """
    apart = (first.double() - second.double()).abs()
    return float(apart.mean() if dtype == torch.bfloat16 else apart.max())


def dtype_of(backbone: AbstractBackbone) -> torch.dtype:
    """What the frozen model computes in; an adapter may be kept in more digits."""
    return next(weight.dtype for weight in backbone.module.parameters() if not weight.requires_grad)
