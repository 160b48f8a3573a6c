"""Micro-batches in the plain layout: what predicts what, each image once, and the same rows however a batch is made."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import Picture
from torch import Tensor

from medvlm_dpo.data.changes import changed_tokens
from medvlm_dpo.data.collate import answers_of_views, collate, moved
from medvlm_dpo.data.encoding import EncodedExample
from medvlm_dpo.data.segments import Layout, PlainLayout
from medvlm_dpo.vocab import Batch, ImageSource

LAW = settings(max_examples=60, deadline=None, derandomize=True)
VIEWS: tuple[str, ...] = ("chosen", "rejected", "unmatched")


def pictures(images: Sequence[ImageSource]) -> Tensor:
    return torch.stack([torch.full((3, 2, 2), float(image.key)) for image in images])


def make(place: int, prompt: tuple[int, ...], answers: dict[Any, tuple[int, ...]], weight: float | None = None) -> EncodedExample:
    return EncodedExample(f"e{place}", Picture(str(place % 3)), prompt, answers, weight)


def batch_of(examples: list[EncodedExample], views: Iterable[str], layout: Layout | None = None) -> Batch:
    def draw(id_: str) -> float:
        return 0.25 if id_ == "e0" else 0.75

    return collate(examples, views, global_positions=range(len(examples)), layout=layout or PlainLayout(), pictures=pictures, draw=draw)


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
                assert float(rows.pictures[rows.image_rows[answer]].mean()) == float(example.image.key)
    assert rows.padding_mask.sum(-1).tolist() == [
        len(example.prompt) + len(example.answers[view]) for example in examples for view in sorted(VIEWS) if view in example.answers
    ]
    assert len(rows.pictures) == len({example.image.key for example in examples})


def test_a_wrong_shift_would_point_at_other_tokens() -> None:
    batch = batch_of([make(0, (5, 6), {"chosen": (7, 8, 2)})], ["chosen"])
    rows = batch.rows

    assert rows.predictor_columns.tolist() == [1, 2, 3]
    assert rows.input_ids[rows.predictor_rows, rows.predictor_columns].tolist() == [6, 7, 8], "the last prompt token predicts the first"
    assert rows.labels.tolist() == [7, 8, 2]


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


def test_answers_of_views() -> None:
    examples = [make(0, (5,), {"chosen": (7, 2), "rejected": (8, 2)}), make(1, (5,), {"rejected": (7, 2)})]
    batch = batch_of(examples, ("chosen", "rejected"))

    assert answers_of_views(batch, ["chosen"]).tolist() == [True, False, False]
    assert answers_of_views(batch, ["rejected"]).tolist() == [False, True, True]
    assert answers_of_views(batch, ["chosen", "rejected"]).all()
    assert not answers_of_views(batch, []).any()
