"""Loaders whose items are optimiser steps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from medvlm_dpo.data.collate import EncodedExample, collate, moved
from medvlm_dpo.data.sampler import micro_batches, step_examples
from medvlm_dpo.vocab import ImageSource, Step

Pixels = Callable[[ImageSource], Tensor]


class TrainingSteps(IterableDataset[Step]):
    """The steps `first_step .. num_steps-1` of a run."""

    def __init__(  # noqa: PLR0913
        self, examples: Sequence[EncodedExample], views: frozenset[str], pixels: Pixels, *,
        batch_size: int, micro_batch_size: int, seed: int, num_steps: int, first_step: int,
    ) -> None:  # fmt: skip
        self._examples, self._views, self._pixels = examples, views, pixels
        self._batch_size, self._micro_batch_size, self._seed = batch_size, micro_batch_size, seed
        self._num_steps, self._first_step = num_steps, first_step

    def __len__(self) -> int:
        """Steps left."""
        return self._num_steps - self._first_step

    def __iter__(self) -> Iterator[Step]:
        """Yields the steps in order."""
        for index in range(self._first_step, self._num_steps):
            chosen = step_examples(index, num_examples=len(self._examples), batch_size=self._batch_size, seed=self._seed)
            yield make_step(index, [self._examples[row] for row in chosen], self._views, self._pixels, self._micro_batch_size)


class ValidationSteps(IterableDataset[Step]):
    """The validation pairs in their own order; the last item may be smaller."""

    def __init__(
        self, examples: Sequence[EncodedExample], views: frozenset[str], pixels: Pixels, *, batch_size: int, micro_batch_size: int
    ) -> None:
        self._examples, self._views, self._pixels = examples, views, pixels
        self._batch_size, self._micro_batch_size = batch_size, micro_batch_size

    def __len__(self) -> int:
        """Number of items."""
        return -(-len(self._examples) // self._batch_size)

    def __iter__(self) -> Iterator[Step]:
        """Yields the items in order."""
        for index in range(len(self)):
            part = self._examples[index * self._batch_size : (index + 1) * self._batch_size]
            yield make_step(index, part, self._views, self._pixels, self._micro_batch_size)


def make_step(index: int, examples: Sequence[EncodedExample], views: frozenset[str], pixels: Pixels, micro_batch_size: int) -> Step:
    """One global batch as a list of collated micro-batches."""
    batches = []
    for part in micro_batches(range(len(examples)), micro_batch_size):
        positions = [position for position, _ in part]
        batches.append(collate([examples[position] for position in positions], views, global_positions=positions, pixels=pixels))
    return Step(index, tuple(batches), len(examples))


class PreferenceData(LightningDataModule):
    """Training and validation loaders; items arrive collated, so the loaders do no batching of their own."""

    def __init__(self, training: TrainingSteps, validation: ValidationSteps) -> None:
        super().__init__()
        self.training, self.validation = training, validation

    def train_dataloader(self) -> DataLoader[Step]:
        """Remaining training steps."""
        return DataLoader(self.training, batch_size=None)

    def val_dataloader(self) -> DataLoader[Step]:
        """All validation pairs."""
        return DataLoader(self.validation, batch_size=None)

    def transfer_batch_to_device(self, batch: Step, device: torch.device, dataloader_idx: int) -> Step:  # noqa: ARG002 - Lightning's signature
        """Frozen dataclasses are moved by us; Lightning refuses them."""
        return replace(batch, batches=tuple(moved(micro, device) for micro in batch.batches))
