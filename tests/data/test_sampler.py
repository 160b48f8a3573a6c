"""The stateless sampler and the loaders made of it."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from medvlm_dpo.data.datamodule import PreferenceData, StepMaker, TrainingSteps, ValidationSteps
from medvlm_dpo.data.encoding import EncodedExample
from medvlm_dpo.data.sampler import micro_batches, num_steps, share_of_rank, step_examples, uniform_draw
from medvlm_dpo.data.segments import PlainLayout
from medvlm_dpo.vocab import Batch, ImageSource

LAW = settings(max_examples=80, deadline=None, derandomize=True)


@LAW
@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 5))
def test_the_stream_is_whole_shuffled_passes_cut_into_exact_batches(num_examples: int, batch_size: int, seed: int) -> None:
    steps = -(-2 * num_examples // batch_size)
    batches = [step_examples(step, num_examples=num_examples, batch_size=batch_size, seed=seed) for step in range(steps)]

    stream = [index for batch in batches for index in batch]
    assert {len(batch) for batch in batches} == {batch_size}
    for start in (0, num_examples):
        assert sorted(stream[start : start + num_examples]) == list(range(num_examples))
    # A later process that starts anywhere sees the same.
    assert step_examples(steps - 1, num_examples=num_examples, batch_size=batch_size, seed=seed) == batches[-1]


def test_seeds_and_passes_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return step_examples(epoch, num_examples=100, batch_size=100, seed=seed)

    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(found) for found in orders}) == 9
    assert all(found != list(range(100)) for found in orders)


def test_order_is_pinned() -> None:
    """Another order would be another result for the same cell."""
    assert step_examples(0, num_examples=10, batch_size=10, seed=0) == PINNED


PINNED = [8, 5, 4, 6, 7, 3, 9, 1, 2, 0]


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "max_epochs", "max_steps", "expected"),
    [(10, 4, 1.0, None, 3), (8, 4, 1.0, None, 2), (8, 4, 2.5, None, 5), (8, 4, 1.0, 7, 7), (3, 16, 0.1, None, 1), (100, 10, 0.25, None, 3)],
)
def test_number_of_steps(num_examples: int, batch_size: int, max_epochs: float, max_steps: int | None, expected: int) -> None:
    assert num_steps(num_examples=num_examples, batch_size=batch_size, max_epochs=max_epochs, max_steps=max_steps) == expected


@LAW
@given(st.lists(st.integers(0, 99), min_size=1, max_size=20), st.integers(1, 25))
def test_micro_batches_cover_the_batch_in_order(indices: list[int], size: int) -> None:
    parts = micro_batches(indices, size)

    assert [place for part in parts for place in part] == indices
    assert all(len(part) == size for part in parts[:-1])
    assert 1 <= len(parts[-1]) <= size


class Picture:
    key = "0"

    def load(self) -> Image.Image:
        return Image.new("RGB", (2, 2))

    def content_hash(self) -> str:
        return "0"


def pictures(images: Sequence[ImageSource]) -> Tensor:
    return torch.zeros(len(images), 3, 2, 2)


def encoded(number: int) -> list[EncodedExample]:
    return [EncodedExample(f"e{place}", Picture(), (5,), {"chosen": (7, 2)}, None) for place in range(number)]


def maker(batch_size: int = 4, micro_batch_size: int = 3, rank: int = 0, num_ranks: int = 1) -> StepMaker:
    views = frozenset({"chosen"})
    return StepMaker(views, PlainLayout(), pictures, batch_size, micro_batch_size, seed=1, rank=rank, num_ranks=num_ranks)


def training(first_step: int, micro_batch_size: int = 3) -> TrainingSteps:
    return TrainingSteps(encoded(7), maker(micro_batch_size=micro_batch_size), num_steps=6, first_step=first_step)


@LAW
@given(st.integers(0, 30), st.integers(1, 6))
def test_ranks_share_a_global_batch(size: int, num_ranks: int) -> None:
    shares = [share_of_rank(size, rank, num_ranks) for rank in range(num_ranks)]

    assert [place for share in shares for place in share] == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_ranks_see_their_own_rows_of_the_same_global_batch() -> None:
    whole = maker().make(3, encoded(5))
    parts = [maker(rank=rank, num_ranks=2).make(3, encoded(5)) for rank in (0, 1)]

    for read in (lambda batch: batch.example_ids, lambda batch: tuple(batch.global_positions.tolist()), lambda batch: tuple(draws(batch))):
        assert [x for part in parts for batch in part.batches for x in read(batch)] == [x for batch in whole.batches for x in read(batch)]
    assert {part.num_examples for part in parts} == {5}


def draws(batch: Batch) -> list[float]:
    return batch.facts["uniform_draw"].tolist()


@LAW
@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.text(max_size=5))
def test_a_draw_depends_on_seed_step_and_id_alone(seed: int, step: int, example_id: str) -> None:
    draw = uniform_draw(seed, step, example_id)

    assert 0 < draw < 1
    assert draw == uniform_draw(seed, step, example_id)
    assert len({draw, uniform_draw(seed + 1, step, example_id), uniform_draw(seed, step + 1, example_id)}) == 3


def test_draws_are_uniform() -> None:
    values = [uniform_draw(0, step, f"e{place}") for step in range(50) for place in range(40)]

    tenths = Counter(int(10 * value) for value in values)
    assert all(150 < tenths[tenth] < 250 for tenth in range(10)), "expected 200 of 2000 in each, standard deviation 13.4"


def test_loader_goes_on_where_another_stopped() -> None:
    whole, later = list(training(0)), list(training(4))

    assert [step.index for step in whole] == list(range(6))
    assert [step.index for step in later] == [4, 5]
    assert len(training(4)) == 2
    for step, same in zip(whole[4:], later, strict=True):
        assert [batch.example_ids for batch in step.batches] == [batch.example_ids for batch in same.batches]
        assert step.num_examples == 4


def test_micro_batching_keeps_global_positions() -> None:
    for step, whole in zip(training(0, 3), training(0, 4), strict=True):
        assert [len(batch.example_ids) for batch in step.batches] == [3, 1]
        assert [position for batch in step.batches for position in batch.global_positions.tolist()] == [0, 1, 2, 3]
        assert [id_ for batch in step.batches for id_ in batch.example_ids] == list(whole.batches[0].example_ids)


@pytest.mark.parametrize("number", [0, 1, 4, 9])
def test_validation_visits_every_pair_once_in_order(number: int) -> None:
    steps = ValidationSteps(encoded(number), maker(micro_batch_size=2))

    items = list(PreferenceData(training(0), steps).val_dataloader())

    assert [id_ for item in items for batch in item.batches for id_ in batch.example_ids] == [f"e{place}" for place in range(number)]
    assert len(steps) == len(items)
    assert sum(item.num_examples for item in items) == number
    assert Counter(item.index for item in items) == Counter(range(len(items)))
