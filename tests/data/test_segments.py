"""Rows without a model: whatever sequences share, every token is predicted from its own sequence, and nothing is stored twice."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packing_world import Shown, check_every_token, check_rows, check_spans, distinct_beginnings
from pictures import Picture
from torch import Tensor

from medvlm_dpo.data.pruning import rows_of_answers
from medvlm_dpo.data.segments import Layout, PackedLayout, PlainLayout, Scored, _shelves
from medvlm_dpo.vocab import ImageSource, Rows

LAW = settings(max_examples=150, deadline=None, derandomize=True)
SHOWN = Shown(token=3, number=2)
SPAN = (SHOWN.token,) * SHOWN.number
END = 2

# Few different tokens: common beginnings, prompts that begin with each other, and equal sequences come by themselves.
words = st.lists(st.integers(8, 10), max_size=4).map(tuple)
sequences_drawn = st.lists(
    st.builds(
        lambda before, after, answer, ended, key: Scored(before + SPAN + after, answer + (END,) * ended or (8,), Picture(str(key))),
        before=st.sampled_from([(), (1,), (1, 8)]),
        after=words,
        answer=words,
        ended=st.booleans(),
        key=st.integers(1, 3),
    ),
    min_size=1,
    max_size=9,
)
row_tokens_drawn = st.sampled_from([0, 12, 30, 1000])


def pictures(images: Sequence[ImageSource]) -> Tensor:
    """Known by their value."""
    return torch.stack([torch.full((3, 2, 2), float(image.key)) for image in images])


def packed(sequences: Sequence[Scored], row_tokens: int = 0) -> Rows:
    return PackedLayout(SHOWN.token, row_tokens)(sequences, pictures)


# --- whole rows --------------------------------------------------------------------------------------------------------


@LAW
@given(sequences_drawn, row_tokens_drawn)
def test_every_token_sees_its_own_sequence_and_nothing_is_stored_twice(sequences: list[Scored], row_tokens: int) -> None:
    rows = packed(sequences, row_tokens)

    check_rows(rows, sequences, SHOWN)
    check_every_token(rows)
    check_spans(rows, SHOWN)
    stored = int(rows.padding_mask.sum())
    assert stored == distinct_beginnings(sequences) == PackedLayout(SHOWN.token, row_tokens).num_tokens(sequences)
    assert len(rows.pictures) == len({sequence.image.key for sequence in sequences})
    assert rows.input_ids.shape[1] == int(rows.padding_mask.sum(1).max()), "no column of padding alone"


@LAW
@given(sequences_drawn)
def test_plain_rows_obey_the_same_law(sequences: list[Scored]) -> None:
    rows = PlainLayout()(sequences, pictures)

    check_rows(rows, sequences, SHOWN)
    assert rows.trees is None
    assert rows.predictor_rows.tolist() == rows.answer_index.tolist()
    assert int(rows.padding_mask.sum()) == PlainLayout().num_tokens(sequences) == sum(len(s.prompt) + len(s.answer) for s in sequences)


@LAW
@given(sequences_drawn, row_tokens_drawn)
def test_a_tree_is_a_picture_and_stands_in_one_row(sequences: list[Scored], row_tokens: int) -> None:
    rows = packed(sequences, row_tokens)
    assert rows.trees is not None
    trees = rows.trees.answer_trees.tolist()
    row_of = dict(zip(rows.answer_index.tolist(), rows.predictor_rows.tolist(), strict=True))

    for first, own in enumerate(sequences):
        for second, other in enumerate(sequences):
            assert (trees[first] == trees[second]) == (own.image.key == other.image.key)
            assert row_of[first] == row_of[second] or trees[first] != trees[second]


def test_a_tree_written_out() -> None:
    """Two questions on one picture; the answers of the first begin alike, and the third answer is one token."""
    picture = Picture("1")
    sequences = [Scored((1, 3, 3, 8), (9, 9, 2), picture), Scored((1, 3, 3, 8), (9, 10, 2), picture), Scored((1, 3, 3), (7,), picture)]

    rows = packed(sequences)

    assert rows.trees is not None
    assert rows.input_ids.tolist() == [[1, 3, 3, 8, 9, 9, 10]]
    assert rows.trees.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 5]]
    assert rows.trees.visible_until.tolist() == [[7, 7, 7, 7, 7, 6, 7]]
    assert rows.predictor_columns.tolist() == [3, 4, 5, 3, 4, 6, 2]
    assert rows.labels.tolist() == [9, 9, 2, 9, 10, 2, 7]
    assert rows.trees.span_columns.tolist() == [1]


def test_text_before_the_picture_makes_a_second_span() -> None:
    picture = Picture("1")

    rows = packed([Scored((1, 3, 3, 8), (9, 2), picture), Scored((5, 3, 3, 8), (9, 2), picture)])

    assert rows.trees is not None
    assert rows.trees.span_columns.tolist() == [1, 6]
    assert rows.image_rows.tolist() == [0, 0]
    assert len(rows.pictures) == 1


# --- shelves -----------------------------------------------------------------------------------------------------------


@LAW
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 100))
def test_shelves_hold_every_tree_once_and_no_more_than_they_can(sizes: list[int], row_tokens: int) -> None:
    shelves = _shelves(sizes, row_tokens)
    capacity = max(row_tokens, *sizes)

    assert Counter(index for shelf in shelves for index in shelf) == Counter(range(len(sizes)))
    filled = [sum(sizes[index] for index in shelf) for shelf in shelves]
    assert max(filled) <= capacity
    assert all(first + second > capacity for first, second in pairwise(filled)), "two neighbours would have had room in one row"


# --- rows of some answers ------------------------------------------------------------------------------------------------


@LAW
@given(sequences_drawn, row_tokens_drawn, st.data())
@pytest.mark.parametrize("is_packed", [True, False])
def test_rows_of_some_answers_obey_the_same_law(is_packed: bool, sequences: list[Scored], row_tokens: int, data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.booleans(), min_size=len(sequences), max_size=len(sequences)).filter(any))
    layout: Layout = PackedLayout(SHOWN.token, row_tokens) if is_packed else PlainLayout()
    whole = layout(sequences, pictures)

    rows = rows_of_answers(whole, torch.tensor(wanted))

    chosen = [sequence for sequence, asked in zip(sequences, wanted, strict=True) if asked]
    check_rows(rows, chosen, SHOWN)
    assert rows.pictures is whole.pictures, "their features can be used again"
    assert int(rows.padding_mask.sum()) == layout.num_tokens(chosen)
    if is_packed:
        check_every_token(rows)
        check_spans(rows, SHOWN)
        assert rows.trees is not None
        assert whole.trees is not None
        assert rows.trees.answer_trees.tolist() == whole.trees.answer_trees[torch.tensor(wanted)].tolist()
        assert rows.input_ids.shape[1] == int(rows.padding_mask.sum(1).max())


def test_all_answers_are_the_rows_themselves() -> None:
    rows = packed([Scored((3, 3), (9, 2), Picture("1")), Scored((3, 3), (8, 2), Picture("2"))])

    assert rows_of_answers(rows, torch.tensor([True, True])) is rows
