"""Encoded examples -> one micro-batch: rows in a layout, which answer belongs to which example and view, and facts."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from medvlm_dpo.data.encoding import EncodedExample
from medvlm_dpo.data.segments import Layout, Pictures, Scored
from medvlm_dpo.vocab import CLEAN_VIEWS, Batch, Trees


def collate(
    examples: Sequence[EncodedExample],
    views: Iterable[str],
    *,
    global_positions: Sequence[int],
    layout: Layout,
    pictures: Pictures,
    draw: Callable[[str], float],
) -> Batch:
    """One micro-batch.

    Args:
        examples: this micro-batch.
        views: views to score.
        global_positions: position of every example in the global batch.
        layout: how sequences become rows.
        pictures: a tensor of distinct images, as the backbone takes it.
        draw: the number in (0, 1) of an example id in this step, the fact `uniform_draw`.
    """
    scored: list[Scored] = []
    answers = {view: torch.full((len(examples),), -1) for view in views}
    for row, example in enumerate(examples):
        for view in sorted(answers):
            if (sequence := example.sequence(view)) is not None:
                answers[view][row] = len(scored)
                scored.append(sequence)
    return Batch(
        rows=layout(scored, pictures),
        answers=answers,
        facts=_facts(examples, answers.keys(), width=max(len(sequence.answer) for sequence in scored), draw=draw),
        example_ids=tuple(example.id for example in examples),
        global_positions=torch.tensor(list(global_positions)),
        error_types=tuple(example.error_type for example in examples),
        answer_keys=tuple(sequence.key for sequence in scored),
    )


def _facts(examples: Sequence[EncodedExample], views: Collection[str], *, width: int, draw: Callable[[str], float]) -> dict[str, Tensor]:
    facts = {"uniform_draw": torch.tensor([draw(example.id) for example in examples], dtype=torch.float64)}
    for view in CLEAN_VIEWS:
        lengths = [len(example.answers.get(view, ())) for example in examples]
        facts[f"{view}_lengths"] = torch.tensor(lengths)
        facts[f"{view}_present"] = torch.tensor([float(length > 0) for length in lengths], dtype=torch.float64)
        if view in views and all(view in example.changed for example in examples):
            masks = [(*example.changed[view], *[0] * (width - len(example.changed[view]))) for example in examples]
            facts[f"{view}_changed_mask"] = torch.tensor(masks, dtype=torch.float64)  # as wide as values per token
    weights = [example.pair_weight for example in examples]
    given = [weight for weight in weights if weight is not None]
    if len(given) == len(weights):  # otherwise the fact is not served, and a loss that asks for it fails: never 1
        facts["pair_weight"] = torch.tensor(given, dtype=torch.float64)
    return facts


def answers_of_views(batch: Batch, views: Iterable[str]) -> Bool[Tensor, " answer"]:
    """True on the answers that some views ask for."""
    wanted = torch.zeros(batch.rows.num_answers, dtype=torch.bool, device=batch.rows.labels.device)
    for view in views:
        answers = batch.answers[view]
        wanted[answers[answers >= 0]] = True
    return wanted


def moved(batch: Batch, device: torch.device) -> Batch:
    """The same micro-batch on a device."""
    trees = batch.rows.trees
    return replace(
        batch,
        rows=replace(batch.rows, **_there(batch.rows, device), trees=None if trees is None else Trees(**_there(trees, device))),
        answers={view: answers.to(device) for view, answers in batch.answers.items()},
        facts={name: fact.to(device) for name, fact in batch.facts.items()},
        global_positions=batch.global_positions.to(device),
    )


def _there(record: object, device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) for name, value in vars(record).items() if isinstance(value, Tensor)}
