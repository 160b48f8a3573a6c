"""Fills a store with the starting model's values, and makes sure beforehand that what lies there came from this model."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.cache.blocks import Array
from medvlm_dpo.cache.store import BlockStore
from medvlm_dpo.cache.tensors import array_of, tensor_of
from medvlm_dpo.data.collate import moved
from medvlm_dpo.data.encoding import EncodedExample
from medvlm_dpo.logps import answer_lengths
from medvlm_dpo.reference import StartingReference
from medvlm_dpo.reference_cache import Column, distance, dtype_of, entries_of, keys_of, views_of
from medvlm_dpo.scoring import HIDDEN, REFERENCE
from medvlm_dpo.vocab import Batch, ImageSource, TensorName

EXAMPLES_PER_BLOCK = 32
NUM_CHECKED = 4  # stored arrays of each base that are computed again before any is used
Collated = Callable[[Sequence[EncodedExample], frozenset[str]], Sequence[Batch]]


@dataclass(frozen=True)
class Work:
    """Examples and which columns of them some cell will read."""

    examples: tuple[EncodedExample, ...]
    columns: frozenset[Column]

    def pictures(self) -> list[ImageSource]:
        """What the examples show, corrupted pictures included."""
        return [image for example in self.examples for image in (example.image, example.corrupted) if image is not None]

    def groups(self) -> list[list[str]]:
        """Keys, one list a block. The same examples in the same order make the same blocks in every process."""
        blocks = [self.examples[start : start + EXAMPLES_PER_BLOCK] for start in range(0, len(self.examples), EXAMPLES_PER_BLOCK)]
        groups = [dict.fromkeys(key for example in block for key in keys_of(example, self.columns).values()) for block in blocks]
        return [list(group) for group in groups if group]


class ReferenceFill:
    """Computes columns of examples by key with the starting model.

    Args:
        backbone: loaded.
        collated: makes micro-batches of some examples and views.
        work: everything that may be asked for.
    """

    def __init__(self, backbone: AbstractBackbone, collated: Collated, work: Sequence[Work]) -> None:
        self._backbone, self._collated = backbone, collated
        self._groups = [group for part in work for group in part.groups()]
        self._owners: dict[str, tuple[EncodedExample, Column]] = {}
        for part in work:
            for example in part.examples:
                for column, key in keys_of(example, part.columns).items():
                    self._owners.setdefault(key, (example, column))

    def difference(self, store: BlockStore) -> float:
        """How far some stored arrays of every base lie from what the model gives now; torn ones are passed over.

        Returns:
            Nats a token, of hidden states a share of the largest entry, as `distance` measures them.
        """
        stored = {key: array for key in self._checked(store) if (array := _read(store, key)) is not None}
        computed = self.compute(list(stored))
        dtype = dtype_of(self._backbone)
        found = [_difference(array, computed[key], dtype, relative=key.startswith(f"{HIDDEN}/")) for key, array in stored.items()]
        return float(np.max(found, initial=0.0))  # unlike `max`, it does not lose what is not a number

    def _checked(self, store: BlockStore) -> list[str]:
        """Some keys of every base, spread over what is stored.

        Not of bases that read the corrupted picture's likeliest token: rounding may choose another, and values nats apart are both right.
        """
        by_base: dict[str, list[str]] = {}
        for key, (_, column) in self._owners.items():
            if key in store and len(views_of(column)) == 1:
                by_base.setdefault(column.base, []).append(key)
        return [key for keys in by_base.values() for key in keys[:: max(1, len(keys) // NUM_CHECKED)][:NUM_CHECKED]]

    def missing(self, store: BlockStore) -> int:
        """Number of arrays that the store lacks."""
        return len(store.missing(self._owners))

    def fill(self, store: BlockStore, report: Callable[[int, int], None]) -> None:
        """Adds what is missing.

        Args:
            store: where to.
            report: called with the number of arrays there and of all, after every block.

        Raises:
            StoreError: the store takes no more.
        """
        store.fill(self._groups, self.compute, report=report)

    def compute(self, keys: Sequence[str]) -> Mapping[str, Array]:
        """The arrays of some keys: [token] or [token, hidden]."""
        owners = [self._owners[key] for key in keys]
        examples = {id(example): example for example, _ in owners}
        columns = frozenset(column for _, column in owners)
        wanted, found = set(keys), dict[str, Array]()
        if wanted:
            for batch in self._collated(list(examples.values()), frozenset(view for column in columns for view in views_of(column))):
                found |= {key: array for key, array in self._arrays(batch, columns).items() if key in wanted}
        return found

    def _arrays(self, batch: Batch, columns: Collection[Column]) -> dict[str, Array]:
        there = moved(batch, next(self._backbone.module.parameters()).device)
        values = StartingReference().values(self._backbone, there, _names_of(columns))
        starts = np.concatenate([[0], np.cumsum(answer_lengths(batch).tolist())])
        return {
            entry.key: array_of(values[entry.base][starts[entry.answer] : starts[entry.answer + 1]]) for entry in entries_of(batch, columns)
        }


def _names_of(columns: Collection[Column]) -> list[TensorName]:
    """Tensors that make the reference compute these columns."""
    return [
        TensorName("policy", view, "", "forward_kl") if base == HIDDEN else TensorName(REFERENCE, view, "", base) for view, base in columns
    ]


def _read(store: BlockStore, key: str) -> Array | None:
    try:
        return store[key]
    except KeyError:  # found torn: it counts as missing from now on
        return None


def _difference(stored: Array, computed: Array, dtype: torch.dtype, *, relative: bool) -> float:
    if stored.shape != computed.shape:
        return float("inf")
    if not stored.size:
        return 0.0
    own, other = tensor_of(np.array(stored), dtype), tensor_of(computed, dtype)
    scale = max(float(other.abs().max()), 1e-30) if relative else 1.0
    return distance(own, other, dtype) / scale
