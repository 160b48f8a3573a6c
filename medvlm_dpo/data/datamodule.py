"""Loaders whose items are optimiser steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from medvlm_dpo.data.collate import collate, moved
from medvlm_dpo.data.encoding import EncodedExample
from medvlm_dpo.data.sampler import micro_batches, share_of_rank, step_examples, uniform_draw
from medvlm_dpo.data.segments import Layout, Pictures
from medvlm_dpo.vocab import Step


@dataclass(frozen=True)
class StepMaker:
    """Makes optimiser steps out of examples.

    Args:
        views: views to score.
        layout: how sequences become rows.
        pictures: a tensor of distinct images, as the backbone takes it.
        batch_size: examples per step, over all ranks.
        micro_batch_size: examples per forward pass.
        seed: the cell's.
        rank, num_ranks: which contiguous share of a global batch this process computes.
    """

    views: frozenset[str]
    layout: Layout
    pictures: Pictures
    batch_size: int
    micro_batch_size: int
    seed: int
    rank: int = 0
    num_ranks: int = 1

    def make(self, index: int, examples: Sequence[EncodedExample]) -> Step:
        """This rank's share of one global batch as collated micro-batches.

        Args:
            index: optimiser step, from 0.
            examples: the global batch.
        """
        own = share_of_rank(len(examples), self.rank, self.num_ranks)
        batches = [
            collate(
                [examples[position] for position in part],
                self.views,
                global_positions=part,
                layout=self.layout,
                pictures=self.pictures,
                draw=partial(uniform_draw, self.seed, index),
            )
            for part in micro_batches(own, self.micro_batch_size)
        ]
        return Step(index, tuple(batches), len(examples))


class TrainingSteps(IterableDataset[Step]):
    """The steps `first_step .. num_steps-1` of a run."""

    def __init__(self, examples: Sequence[EncodedExample], maker: StepMaker, *, num_steps: int, first_step: int) -> None:
        self._examples, self._maker = examples, maker
        self._num_steps, self._first_step = num_steps, first_step

    def __len__(self) -> int:
        """Steps left."""
        return self._num_steps - self._first_step

    def __iter__(self) -> Iterator[Step]:
        """Yields the steps in order."""
        for index in range(self._first_step, self._num_steps):
            places = step_examples(index, num_examples=len(self._examples), batch_size=self._maker.batch_size, seed=self._maker.seed)
            yield self._maker.make(index, [self._examples[place] for place in places])


class ValidationSteps(IterableDataset[Step]):
    """The validation pairs in their own order, in items of nearly equal size: batch statistics need company."""

    def __init__(self, examples: Sequence[EncodedExample], maker: StepMaker) -> None:
        self._examples, self._maker = examples, maker

    def __len__(self) -> int:
        """Number of items."""
        return -(-len(self._examples) // self._maker.batch_size)

    def __iter__(self) -> Iterator[Step]:
        """Yields the items in order."""
        for index in range(len(self)):
            share = share_of_rank(len(self._examples), index, len(self))
            yield self._maker.make(index, self._examples[share.start : share.stop])


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
