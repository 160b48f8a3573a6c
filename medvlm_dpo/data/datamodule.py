"""Loaders whose items are optimiser steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Int
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from medvlm_dpo.data.collate import collate, moved
from medvlm_dpo.data.encoding import EncodedExample
from medvlm_dpo.data.sampler import NumTokens, balanced, micro_batches, share, step_examples, uniform_draw
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
        micro_batch_size: examples per forward pass; None for no limit.
        seed: the cell's.
        micro_batch_tokens: tokens per forward pass; None for no limit.
        rank, num_ranks: which share of a global batch this process computes.
    """

    views: frozenset[str]
    layout: Layout
    pictures: Pictures
    batch_size: int
    micro_batch_size: int | None
    seed: int
    micro_batch_tokens: int | None = None
    rank: int = 0
    num_ranks: int = 1

    def make(self, index: int, examples: Sequence[EncodedExample]) -> Step:
        """This rank's share of one global batch as collated micro-batches.

        Args:
            index: optimiser step, from 0.
            examples: the global batch.
        """
        parts = micro_batches(*self._own(examples), max_tokens=self.micro_batch_tokens, max_examples=self.micro_batch_size)
        batches = [
            collate(
                [examples[position] for position in part],
                self.views,
                global_positions=part,
                layout=self.layout,
                pictures=self.pictures,
                draw=partial(uniform_draw, self.seed, index),
            )
            for part in parts
        ]
        return Step(index, tuple(batches), len(examples))

    def _own(self, examples: Sequence[EncodedExample]) -> tuple[list[list[int]], NumTokens]:
        """Positions this rank computes, those together that share tokens, and what counts tokens."""
        views = sorted(self.views)  # a set has another order in every process
        sequences = [[scored for view in views if (scored := example.sequence(view)) is not None] for example in examples]

        def num_tokens(positions: Sequence[int]) -> int:
            return self.layout.num_tokens([scored for position in positions for scored in sequences[position]])

        own: Sequence[int] = range(len(examples))
        if self.num_ranks > 1:
            own = balanced(_groups(examples, own, num_tokens), num_tokens, self.num_ranks)[self.rank]
        return _groups(examples, own, num_tokens), num_tokens


def _groups(examples: Sequence[EncodedExample], positions: Sequence[int], num_tokens: NumTokens) -> list[list[int]]:
    """Examples of one image together where that saves tokens."""
    by_image: dict[str, list[int]] = {}
    for position in positions:
        by_image.setdefault(examples[position].image.content_hash(), []).append(position)
    groups: list[list[int]] = []
    for group in by_image.values():
        alone = [[position] for position in group]
        saves = len(group) > 1 and num_tokens(group) < sum(map(num_tokens, alone))
        groups += [group] if saves else alone
    return groups


class TrainingSteps(IterableDataset[Step]):
    """The steps `first_step .. num_steps-1` of a run.

    Args:
        examples: training set.
        maker: makes the steps.
        num_steps: of the whole run.
        first_step: the first that is left.
        by_image: whether the examples of one image stand side by side in a pass.
    """

    def __init__(
        self, examples: Sequence[EncodedExample], maker: StepMaker, *, num_steps: int, first_step: int, by_image: bool = False
    ) -> None:
        self._examples, self._maker = examples, maker
        self._images = _image_numbers(examples) if by_image else None
        self._num_steps, self._first_step = num_steps, first_step

    def __len__(self) -> int:
        """Steps left."""
        return self._num_steps - self._first_step

    def __iter__(self) -> Iterator[Step]:
        """Yields the steps in order."""
        for index in range(self._first_step, self._num_steps):
            yield self._maker.make(index, [self._examples[place] for place in self._places(index)])

    def visited(self) -> frozenset[int]:
        """Places of the examples that some of these steps sees."""
        return frozenset(place for index in range(self._first_step, self._num_steps) for place in self._places(index))

    def _places(self, index: int) -> list[int]:
        size, seed = self._maker.batch_size, self._maker.seed
        return step_examples(index, num_examples=len(self._examples), batch_size=size, seed=seed, images=self._images)


def _image_numbers(examples: Sequence[EncodedExample]) -> Int[np.ndarray, " example"]:
    """Images counted in the order in which the data shows them first."""
    contents = [example.image.content_hash() for example in examples]
    numbers = {content: number for number, content in enumerate(dict.fromkeys(contents))}
    return np.array([numbers[content] for content in contents])


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
            part = share(len(self._examples), index, len(self))
            yield self._maker.make(index, self._examples[part.start : part.stop])


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
