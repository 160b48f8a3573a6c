"""Examples -> token ids -> micro-batches in the plain layout: one row per scored answer."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from medvlm_dpo.vocab import Batch, Example, ImageSource, Rows, Turn


class Encoder(Protocol):
    """What turns text into token ids; the backbones' `PromptEncoder`."""

    def prompt_ids(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Ids of a conversation that ends with a human turn."""
        ...

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Ids of an answer with its end-of-sequence token."""
        ...


@dataclass(frozen=True)
class EncodedExample:
    """One example as token ids; `answers` holds only views the example has."""

    id: str
    image: ImageSource
    prompt: tuple[int, ...]
    answers: dict[str, tuple[int, ...]]
    pair_weight: float | None
    error_type: str | None = None


def encode_examples(examples: Sequence[Example], partners: Sequence[int] | None, encoder: Encoder) -> tuple[EncodedExample, ...]:
    """Tokenises every example once.

    Args:
        examples: records.
        partners: for every example the index of the one whose answer is its `unmatched` answer; None when no loss asks.
        encoder: the backbone's.
    """
    encoded: list[EncodedExample] = []
    for index, example in enumerate(examples):
        texts = {"chosen": example.chosen, "rejected": example.rejected}
        if partners is not None:
            texts["unmatched"] = own_answer(examples[partners[index]])
        answers = {view: encoder.answer_ids(text) for view, text in texts.items() if text is not None}
        prompt = encoder.prompt_ids(example.turns)
        encoded.append(EncodedExample(example.id, example.image, prompt, answers, example.pair_weight, example.error_type))
    return tuple(encoded)


def own_answer(example: Example) -> str:
    """The chosen answer, or the only one."""
    answer = example.chosen if example.chosen is not None else example.rejected
    if answer is None:
        raise ValueError(f"example {example.id} has no answer")
    return answer


def collate(
    examples: Sequence[EncodedExample],
    views: Iterable[str],
    *,
    global_positions: Sequence[int],
    pixels: Callable[[ImageSource], Tensor],
) -> Batch:
    """One micro-batch in the plain layout.

    Args:
        examples: this micro-batch.
        views: views to score.
        global_positions: position of every example in the global batch.
        pixels: preprocessing of one image.
    """
    scored = [(row, view) for row in range(len(examples)) for view in sorted(views) if view in examples[row].answers]
    answers = {view: torch.full((len(examples),), -1) for view in views}
    for answer, (row, view) in enumerate(scored):
        answers[view][row] = answer
    return Batch(
        rows=_plain_rows([(examples[row].prompt, examples[row].answers[view], examples[row].image) for row, view in scored], pixels),
        answers=answers,
        facts=_facts(examples),
        example_ids=tuple(example.id for example in examples),
        global_positions=torch.tensor(list(global_positions)),
        error_types=tuple(example.error_type for example in examples),
    )


def _plain_rows(sequences: Sequence[tuple[tuple[int, ...], tuple[int, ...], ImageSource]], pixels: Callable[[ImageSource], Tensor]) -> Rows:
    width = max(len(prompt) + len(answer) for prompt, answer, _ in sequences)
    input_ids = torch.zeros((len(sequences), width), dtype=torch.long)
    padding_mask = torch.zeros((len(sequences), width), dtype=torch.bool)
    images = {image.key: image for _, _, image in sequences}
    image_order = {key: index for index, key in enumerate(images)}
    predictor_rows: list[int] = []
    predictor_columns: list[int] = []
    for row, (prompt, answer, _) in enumerate(sequences):
        length = len(prompt) + len(answer)
        input_ids[row, :length] = torch.tensor(prompt + answer)
        padding_mask[row, :length] = True
        predictor_rows += [row] * len(answer)
        predictor_columns += range(len(prompt) - 1, length - 1)  # the token before predicts
    return Rows(
        input_ids=input_ids,
        padding_mask=padding_mask,
        pixel_values=torch.stack([pixels(image) for image in images.values()]),
        image_rows=torch.tensor([image_order[image.key] for _, _, image in sequences]),
        predictor_rows=torch.tensor(predictor_rows),
        predictor_columns=torch.tensor(predictor_columns),
        labels=torch.tensor([token for _, answer, _ in sequences for token in answer]),
        answer_index=torch.tensor(predictor_rows),  # one row per answer in this layout
        num_answers=len(sequences),
    )


def _facts(examples: Sequence[EncodedExample]) -> dict[str, Tensor]:
    facts: dict[str, Tensor] = {}
    for view in ("chosen", "rejected"):
        lengths = [len(example.answers.get(view, ())) for example in examples]
        facts[f"{view}_lengths"] = torch.tensor(lengths)
        facts[f"{view}_present"] = torch.tensor([float(length > 0) for length in lengths], dtype=torch.float64)
    weights = [example.pair_weight for example in examples]
    given = [weight for weight in weights if weight is not None]
    if len(given) == len(weights):  # otherwise the fact is not served, and a loss that asks for it fails: never 1
        facts["pair_weight"] = torch.tensor(given, dtype=torch.float64)
    return facts


def only_views(batch: Batch, views: Iterable[str]) -> Batch:
    """The same micro-batch with the rows of some views only, for a pass that needs no others (plain layout)."""
    kept = {view: batch.answers[view] for view in views}
    wanted = _answers_of(batch, kept)
    place = torch.full((batch.rows.num_answers,), -1, device=wanted.device)
    place[wanted] = torch.arange(len(wanted), device=wanted.device)
    rows = batch.rows
    tokens = place[rows.answer_index] >= 0
    return replace(
        batch,
        answers={view: torch.where(answers >= 0, place[answers.clamp(min=0)], -1) for view, answers in kept.items()},
        rows=replace(
            rows,
            input_ids=rows.input_ids[wanted],
            padding_mask=rows.padding_mask[wanted],
            image_rows=rows.image_rows[wanted],
            predictor_rows=place[rows.predictor_rows[tokens]],
            predictor_columns=rows.predictor_columns[tokens],
            labels=rows.labels[tokens],
            answer_index=place[rows.answer_index[tokens]],
            num_answers=len(wanted),
        ),
    )


def tokens_of_views(batch: Batch, views: Iterable[str]) -> Bool[Tensor, " response_token"]:
    """True on the response tokens that `only_views` keeps, in the order in which it keeps them."""
    return torch.isin(batch.rows.answer_index, _answers_of(batch, views))


def _answers_of(batch: Batch, views: Iterable[str]) -> Int[Tensor, " answer"]:
    answers = torch.cat([batch.answers[view] for view in views])
    return answers[answers >= 0].unique()  # ascending: rows keep their order


def moved(batch: Batch, device: torch.device) -> Batch:
    """The same micro-batch on a device."""
    rows: dict[str, Any] = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in vars(batch.rows).items()}
    return replace(
        batch,
        rows=Rows(**rows),
        answers={view: answers.to(device) for view, answers in batch.answers.items()},
        facts={name: fact.to(device) for name, fact in batch.facts.items()},
        global_positions=batch.global_positions.to(device),
    )
