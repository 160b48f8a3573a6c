"""The stateless sampler and the loaders made of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, groupby

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from medvlm_dpo.data.datamodule import PreferenceData, StepMaker, TrainingSteps, ValidationSteps
from medvlm_dpo.data.encoding import EncodedExample
from medvlm_dpo.data.sampler import balanced, micro_batches, num_steps, share, step_examples, uniform_draw
from medvlm_dpo.data.segments import Layout, PackedLayout, PlainLayout
from medvlm_dpo.vocab import Batch, ImageSource, Step

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


# --- image_tree ------------------------------------------------------------------------------------------------------

IMAGES = st.lists(st.integers(0, 6), min_size=1, max_size=40).map(lambda shown: np.unique(np.array(shown), return_inverse=True)[1])


@LAW
@given(IMAGES, st.integers(1, 20), st.integers(0, 5))
def test_a_pass_by_image_holds_every_example_once_and_images_in_one_piece(images: np.ndarray, batch_size: int, seed: int) -> None:
    number = len(images)

    def batch(step: int) -> list[int]:
        return step_examples(step, num_examples=number, batch_size=batch_size, seed=seed, images=images)

    stream = [index for step in range(-(-2 * number // batch_size)) for index in batch(step)]
    for start in (0, number):
        found = stream[start : start + number]
        assert sorted(found) == list(range(number))
        runs = [image for image, _ in groupby(images[found].tolist())]
        assert len(runs) == len(set(runs))
    assert len(batch(3)) == batch_size
    assert batch(3) == batch(3)


def test_images_and_the_examples_of_one_are_shuffled_in_every_pass() -> None:
    images = np.repeat(np.arange(12), 6)
    passes = [step_examples(epoch, num_examples=72, batch_size=72, seed=0, images=images) for epoch in range(3)]

    orders_of_images = {tuple(dict.fromkeys(images[found].tolist())) for found in passes}
    orders_in_an_image = {tuple(index for index in found if images[index] == 5) for found in passes}
    assert len(orders_of_images) == len(orders_in_an_image) == 3
    assert {tuple(range(12)), tuple(range(30, 36))}.isdisjoint(orders_of_images | orders_in_an_image)


def test_order_by_image_is_pinned() -> None:
    """Another order would be another result for the same cell."""
    images = np.array([0, 1, 0, 2, 1, 2, 2, 0])
    assert step_examples(0, num_examples=8, batch_size=8, seed=0, images=images) == PINNED_BY_IMAGE


PINNED_BY_IMAGE = [7, 2, 0, 5, 6, 3, 4, 1]


# --- ranks and micro-batches -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Global:
    """A global batch: which picture each example shows, its own tokens, and the tokens of a picture, which a tree holds once."""

    images: tuple[int, ...]
    own: tuple[int, ...]
    picture: int

    def num_tokens(self, positions: Sequence[int]) -> int:
        return sum(self.own[position] for position in positions) + self.picture * len({self.images[position] for position in positions})

    @property
    def groups(self) -> list[list[int]]:
        return [[place for place, own in enumerate(self.images) if own == image] for image in dict.fromkeys(self.images)]


@st.composite
def global_batches(draw: st.DrawFn) -> Global:
    images = draw(st.lists(st.integers(0, 6), min_size=1, max_size=16))
    own = draw(st.lists(st.integers(1, 30), min_size=len(images), max_size=len(images)))
    return Global(tuple(images), tuple(own), draw(st.integers(0, 60)))


LIMITS = st.none() | st.integers(1, 200)


@LAW
@given(global_batches(), LIMITS, st.none() | st.integers(1, 17))
def test_micro_batches_are_a_partition_within_the_limits(batch: Global, max_tokens: int | None, max_examples: int | None) -> None:
    parts = micro_batches(batch.groups, batch.num_tokens, max_tokens=max_tokens, max_examples=max_examples)

    every = list(range(len(batch.own)))
    assert sorted(position for part in parts for position in part) == every
    for part in parts:
        assert len(part) == 1 or max_tokens is None or batch.num_tokens(part) <= max_tokens
        assert max_examples is None or len(part) <= max_examples
        assert part == sorted(part)
    if (max_tokens is None or batch.num_tokens(every) <= max_tokens) and (max_examples is None or len(every) <= max_examples):
        assert parts == [every], "what fits is not cut: losses with batch statistics pay for every cut"


@LAW
@given(global_batches(), st.integers(1, 200))
def test_micro_batches_are_filled(batch: Global, max_tokens: int) -> None:
    """No two of them would fit into one; tokens are counted apart, as where no tree is shared."""
    parts = micro_batches(batch.groups, batch.num_tokens, max_tokens=max_tokens, max_examples=None)

    for first, second in combinations(parts, 2):
        assert batch.num_tokens(first) + batch.num_tokens(second) > max_tokens


def test_examples_of_one_image_stay_together_and_the_longest_go_first() -> None:
    batch = Global(images=(0, 1, 0, 2, 1), own=(5, 5, 5, 20, 5), picture=50)

    assert micro_batches(batch.groups, batch.num_tokens, max_tokens=130, max_examples=None) == [[0, 2, 3], [1, 4]]
    assert micro_batches(batch.groups, batch.num_tokens, max_tokens=60, max_examples=None) == [[3], [0, 2], [1, 4]]


def test_what_fits_together_is_not_cut_because_it_would_not_fit_apart() -> None:
    """As where every example shows the same blank picture besides its own."""
    batch = Global(images=(0, 0, 0), own=(5, 5, 5), picture=50)

    assert micro_batches([[0], [1], [2]], batch.num_tokens, max_tokens=65, max_examples=None) == [[0, 1, 2]]


def test_lengths_of_a_micro_batch_are_similar() -> None:
    """Without shared tokens, as in the plain layout: little padding."""
    batch = Global(images=(0, 1, 2, 3, 4, 5), own=(10, 90, 11, 91, 12, 92), picture=0)

    assert micro_batches(batch.groups, batch.num_tokens, max_tokens=None, max_examples=3) == [[1, 3, 5], [0, 2, 4]]


@LAW
@given(global_batches(), st.integers(1, 5))
def test_ranks_share_a_global_batch(batch: Global, num_ranks: int) -> None:
    shares = balanced(batch.groups, batch.num_tokens, num_ranks)

    assert len(shares) == num_ranks
    assert sorted(position for own in shares for position in own) == list(range(len(batch.own)))
    assert shares == balanced(batch.groups, batch.num_tokens, num_ranks)
    longest = max(map(batch.num_tokens, batch.groups))
    fair = sum(map(batch.num_tokens, batch.groups)) / num_ranks
    assert max(map(batch.num_tokens, shares)) <= fair + longest, "whoever got the last group was the least loaded before"


def test_ranks_are_balanced_by_tokens_not_by_examples() -> None:
    batch = Global(images=(0, 1, 2, 3), own=(90, 30, 30, 30), picture=0)

    assert balanced(batch.groups, batch.num_tokens, 2) == [[0], [1, 2, 3]]
    assert balanced([[0]], batch.num_tokens, 2) == [[0], []]


def test_a_group_is_cut_for_ranks_only_where_that_is_faster() -> None:
    long_answers = Global(images=(0, 0, 0, 0), own=(50, 50, 50, 50), picture=20)
    assert balanced(long_answers.groups, long_answers.num_tokens, 2) == [[0, 1], [2, 3]]

    two_images = Global(images=(0, 0, 1, 1), own=(5, 5, 5, 5), picture=500)
    assert balanced(two_images.groups, two_images.num_tokens, 2) == [[0, 1], [2, 3]]


# --- the loaders -----------------------------------------------------------------------------------------------------


class Picture:
    def __init__(self, number: int = 0) -> None:
        self.key = str(number)

    def load(self) -> Image.Image:
        return Image.new("RGB", (2, 2))

    def content_hash(self) -> str:
        return self.key


def pictures(images: Sequence[ImageSource]) -> Tensor:
    return torch.zeros(len(images), 3, 2, 2)


def encoded(number: int) -> list[EncodedExample]:
    return [EncodedExample(f"e{place}", Picture(), (5,), {"chosen": (7, 2)}, None) for place in range(number)]


def maker(batch_size: int = 4, micro_batch_size: int = 3, rank: int = 0, num_ranks: int = 1) -> StepMaker:
    views = frozenset({"chosen"})
    return StepMaker(views, PlainLayout(), pictures, batch_size, micro_batch_size, seed=1, rank=rank, num_ranks=num_ranks)


def training(first_step: int, micro_batch_size: int = 3) -> TrainingSteps:
    return TrainingSteps(encoded(7), maker(micro_batch_size=micro_batch_size), num_steps=6, first_step=first_step)


@pytest.mark.parametrize("layout", [PlainLayout(), PackedLayout(99)])
def test_ranks_see_their_own_rows_of_the_same_global_batch(layout: Layout) -> None:
    def rows(made: Step) -> list[tuple[int, str, float]]:
        return [row for batch in made.batches for row in zip(batch.global_positions.tolist(), batch.example_ids, draws(batch), strict=True)]

    examples = asked(11)
    whole = replace(maker(), layout=layout).make(3, examples)
    # A rank's own limits do not change who computes what.
    parts = [replace(maker(micro_batch_size=4 - rank, rank=rank, num_ranks=3), layout=layout).make(3, examples) for rank in range(3)]

    assert sorted(row for part in parts for row in rows(part)) == sorted(rows(whole))
    assert {part.num_examples for part in parts} == {11}
    assert all(part.batches for part in parts)


@LAW
@given(st.integers(1, 30), st.integers(1, 6))
def test_shares_are_contiguous_and_of_nearly_equal_size(size: int, num_parts: int) -> None:
    parts = [share(size, part, num_parts) for part in range(num_parts)]

    assert [place for part in parts for place in part] == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def asked(number: int) -> list[EncodedExample]:
    """Questions of different lengths, four to a picture; a picture is 20 tokens."""
    return [
        EncodedExample(f"e{place}", Picture(place // 4), (1, *[99] * 20, 5 + place), {"chosen": (*[7] * (1 + place % 5), 2)}, None)
        for place in range(number)
    ]


@LAW
@given(st.integers(1, 16), st.integers(1, 300), st.integers(1, 3), st.sampled_from([PlainLayout(), PackedLayout(99)]))
def test_a_step_is_cut_to_the_token_budget(number: int, budget: int, num_ranks: int, layout: Layout) -> None:
    examples = asked(number)
    views = frozenset({"chosen", "rejected"})
    makers = [StepMaker(views, layout, pictures, 4, None, 1, budget, rank, num_ranks) for rank in range(num_ranks)]
    batches = [batch for maker in makers for batch in maker.make(0, examples).batches]

    assert sorted(id_ for batch in batches for id_ in batch.example_ids) == sorted(example.id for example in examples)
    for batch in batches:
        assert [examples[position].id for position in batch.global_positions] == list(batch.example_ids)
        assert len(batch.example_ids) == 1 or int(batch.rows.padding_mask.sum()) <= budget


def test_questions_of_one_picture_share_a_micro_batch_where_that_saves_tokens() -> None:
    examples = [asked(8)[place] for place in (0, 4, 1, 5, 2, 6, 3, 7)]

    def cut(layout: Layout) -> list[tuple[str, ...]]:
        maker = StepMaker(frozenset({"chosen"}), layout, pictures, 8, None, seed=1, micro_batch_tokens=60)
        return [batch.example_ids for batch in maker.make(0, examples).batches]

    assert cut(PackedLayout(99)) == [("e4", "e5", "e6", "e7"), ("e0", "e1", "e2", "e3")]
    assert cut(PlainLayout()) == [("e4", "e3"), ("e2", "e7"), ("e1", "e6"), ("e0", "e5")]


def test_the_loader_reads_the_data_by_image_and_goes_on_where_it_stopped() -> None:
    def loader(first_step: int, *, by_image: bool) -> TrainingSteps:
        return TrainingSteps(asked(16), maker(micro_batch_size=9), num_steps=9, first_step=first_step, by_image=by_image)

    def ids(steps: TrainingSteps) -> list[list[str]]:
        return [[id_ for batch in step.batches for id_ in batch.example_ids] for step in steps]

    whole = ids(loader(0, by_image=True))
    assert all(len({int(id_[1:]) // 4 for id_ in batch}) == 1 for batch in whole)
    assert sorted(id_ for batch in whole[:4] for id_ in batch) == sorted(id_ for batch in whole[4:8] for id_ in batch)
    assert len({id_ for batch in whole[:4] for id_ in batch}) == 16
    assert any(len({int(id_[1:]) // 4 for id_ in batch}) > 1 for batch in ids(loader(0, by_image=False)))
    for first_step in range(9):
        assert ids(loader(first_step, by_image=True)) == whole[first_step:]


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
