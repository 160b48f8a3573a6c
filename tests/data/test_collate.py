"""Micro-batches in the plain layout: what predicts what, each image once, and the same rows however a batch is made."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import Picture
from torch import Tensor

from medvlm_dpo.data.changes import changed_tokens
from medvlm_dpo.data.collate import EncodedExample, collate, encode_examples, moved, only_views, own_answer
from medvlm_dpo.vocab import Batch, Example, ImageSource, Turn

LAW = settings(max_examples=60, deadline=None, derandomize=True)
VIEWS: tuple[str, ...] = ("chosen", "rejected", "unmatched")


def pixels(image: ImageSource) -> Tensor:
    return torch.full((3, 2, 2), float(image.key))


def make(place: int, prompt: tuple[int, ...], answers: dict[Any, tuple[int, ...]], weight: float | None = None) -> EncodedExample:
    return EncodedExample(f"e{place}", Picture(str(place % 3)), prompt, answers, weight)


def batch_of(examples: list[EncodedExample], views: Iterable[str]) -> Batch:
    return collate(examples, views, global_positions=range(len(examples)), pixels=pixels, draw=lambda id_: 0.25 if id_ == "e0" else 0.75)


ids = st.lists(st.integers(4, 50), min_size=1, max_size=5).map(tuple)
answered = st.dictionaries(st.sampled_from(VIEWS), ids, min_size=1)
examples_of = st.lists(st.tuples(ids, answered), min_size=1, max_size=5).map(
    lambda parts: [make(place, prompt, answers) for place, (prompt, answers) in enumerate(parts)]
)


@LAW
@given(examples_of)
def test_each_label_is_predicted_by_the_token_before_it(examples: list[EncodedExample]) -> None:
    batch = batch_of(examples, VIEWS)
    rows = batch.rows

    assert torch.equal(rows.input_ids[rows.predictor_rows, rows.predictor_columns + 1], rows.labels)
    for row, example in enumerate(examples):
        for view in VIEWS:
            answer = int(batch.answers[view][row])
            assert (answer >= 0) == (view in example.answers)
            if answer >= 0:
                own = rows.answer_index == answer
                sequence = rows.input_ids[int(rows.predictor_rows[own][0])]
                assert tuple(rows.labels[own].tolist()) == example.answers[view]
                assert tuple(sequence[: len(example.prompt)].tolist()) == example.prompt
                assert float(rows.pixel_values[rows.image_rows[answer]].mean()) == float(example.image.key)
    assert rows.padding_mask.sum(-1).tolist() == [
        len(example.prompt) + len(example.answers[view]) for example in examples for view in sorted(VIEWS) if view in example.answers
    ]
    assert len(rows.pixel_values) == len({example.image.key for example in examples})


def test_a_wrong_shift_would_point_at_other_tokens() -> None:
    batch = batch_of([make(0, (5, 6), {"chosen": (7, 8, 2)})], ["chosen"])
    rows = batch.rows

    assert rows.predictor_columns.tolist() == [1, 2, 3]
    assert rows.input_ids[rows.predictor_rows, rows.predictor_columns].tolist() == [6, 7, 8], "the last prompt token predicts the first"
    assert rows.labels.tolist() == [7, 8, 2]


@LAW
@given(examples_of, st.sets(st.sampled_from(VIEWS), min_size=1))
def test_only_views_is_collating_with_those_views(examples: list[EncodedExample], views: set[str]) -> None:
    kept = [example for example in examples if views & example.answers.keys()]
    if not kept:
        return
    part, direct = only_views(batch_of(kept, VIEWS), views), batch_of(kept, views)
    width = direct.rows.input_ids.shape[1]

    assert part.answers.keys() == direct.answers.keys()
    assert all(torch.equal(part.answers[view], direct.answers[view]) for view in views)
    assert torch.equal(part.rows.input_ids[:, :width], direct.rows.input_ids), "the whole batch may be padded wider"
    assert not part.rows.padding_mask[:, width:].any()
    assert torch.equal(part.rows.padding_mask[:, :width], direct.rows.padding_mask)
    shown = [batch.rows.pixel_values[batch.rows.image_rows] for batch in (part, direct)]
    assert torch.equal(shown[0], shown[1])
    for name in ("predictor_rows", "predictor_columns", "labels", "answer_index"):
        assert torch.equal(getattr(part.rows, name), getattr(direct.rows, name)), name
    assert part.rows.num_answers == direct.rows.num_answers


def test_facts_tell_lengths_presence_and_weight() -> None:
    examples = [make(0, (5,), {"chosen": (7, 2)}, 0.5), make(1, (5,), {"rejected": (7, 8, 2)}, 2.0)]

    facts = batch_of(examples, ("chosen", "rejected")).facts

    assert {name: fact.tolist() for name, fact in facts.items()} == {
        "chosen_lengths": [2, 0],
        "chosen_present": [1, 0],
        "rejected_lengths": [0, 3],
        "rejected_present": [0, 1],
        "pair_weight": [0.5, 2.0],
        "uniform_draw": [0.25, 0.75],
    }
    assert "pair_weight" not in batch_of([examples[0], replace(examples[1], pair_weight=None)], ("chosen", "rejected")).facts


def test_moved_moves_every_tensor() -> None:
    batch = batch_of([make(0, (5,), {"chosen": (7, 2)}, 1.0)], ["chosen"])

    there = moved(batch, torch.device("meta"))

    tensors = [*there.answers.values(), *there.facts.values(), there.global_positions]
    tensors += [value for value in vars(there.rows).values() if isinstance(value, Tensor)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert there.rows.num_answers == batch.rows.num_answers
    assert there.example_ids == batch.example_ids


class Letters:
    """Encodes letters; a prompt is its turns joined."""

    def prompt_ids(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        return tuple(ord(letter) for turn in turns for letter in turn.text)

    def answer_ids(self, text: str) -> tuple[int, ...]:
        return (*(ord(letter) for letter in text), 2)


def test_encoding_takes_the_partners_own_answer() -> None:
    pairs = [
        Example("a", Picture("0"), (Turn("human", "Q"),), "yes", "no", pair_weight=0.3),
        Example("b", Picture("1"), (Turn("human", "R"),), None, "left"),
    ]

    first, second = encode_examples(pairs, (1, 0), Letters())

    assert first.answers == {
        "chosen": Letters().answer_ids("yes"),
        "rejected": Letters().answer_ids("no"),
        "unmatched": Letters().answer_ids("left"),
    }
    assert second.answers == {"rejected": Letters().answer_ids("left"), "unmatched": Letters().answer_ids("yes")}
    assert first.pair_weight == 0.3
    assert encode_examples(pairs, None, Letters())[0].answers.keys() == {"chosen", "rejected"}


def test_example_without_any_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="example x has no answer"):
        own_answer(Example("x", Picture("0"), (), None, None))


def test_the_same_answer_is_scored_on_the_corrupted_picture() -> None:
    example = replace(make(0, (5, 6), {"chosen": (7, 8, 2), "rejected": (9, 2)}), corrupted=Picture("77"))
    batch = batch_of([example, make(1, (5,), {"chosen": (7, 2)})], ["chosen", "chosen_corrupt"])

    assert batch.answers["chosen_corrupt"].tolist() == [1, -1], "the second example has no corrupted picture"
    clean, corrupt = (batch.rows.labels[batch.rows.answer_index == answer].tolist() for answer in (0, 1))
    assert clean == corrupt == [7, 8, 2]
    assert torch.equal(batch.rows.input_ids[0], batch.rows.input_ids[1])
    assert batch.rows.image_rows[0] != batch.rows.image_rows[1]


def test_masks_are_as_wide_as_the_values_per_token() -> None:
    pairs = [make(0, (5,), {"chosen": (7, 8, 9, 2), "rejected": (1, 7, 8, 9, 2)}), make(1, (5,), {"chosen": (7, 2), "rejected": (9, 2)})]
    pairs = [replace(pair, changed=changed_tokens(pair.answers)) for pair in pairs]

    facts = batch_of(pairs, ["chosen", "rejected"]).facts

    assert facts["chosen_changed_mask"].tolist() == [[0, 0, 0, 0, 0], [1, 1, 0, 0, 0]]
    assert facts["rejected_changed_mask"].tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]
    assert "rejected_changed_mask" not in batch_of(pairs, ["chosen"]).facts, "it could be wider than any value"


@pytest.mark.parametrize(
    ("chosen", "rejected", "chosen_mask", "rejected_mask"),
    [
        ([1, 2, 3, 4, 5], [1, 2, 3, 9, 5], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]),  # a match of one token is chance
        ([1, 2], [1, 2], [1, 1], [1, 1]),  # too short to match
        ([1, 2, 3], [1, 2, 3], [0, 0, 0], [0, 0, 0]),
        ([8, 1, 2, 3, 4, 9, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7], [1, 0, 0, 0, 0, 1, 0, 0, 0], [0] * 7),
        ([1, 2, 3, 4] * 60, [1, 2, 3, 4] * 60, [0] * 240, [0] * 240),  # frequent tokens are no junk
    ],
)
def test_changed_tokens(chosen: list[int], rejected: list[int], chosen_mask: list[int], rejected_mask: list[int]) -> None:
    changed = changed_tokens({"chosen": chosen, "rejected": rejected})

    assert {view: list(mask) for view, mask in changed.items()} == {"chosen": chosen_mask, "rejected": rejected_mask}


def test_an_answer_alone_has_no_changed_tokens() -> None:
    assert changed_tokens({"chosen": [1, 2, 3], "unmatched": [1, 2, 3]}) == {}
