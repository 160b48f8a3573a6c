"""Examples -> token ids -> micro-batches in the plain layout: one row per scored answer."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from medvlm_dpo.data.changes import changed_tokens
from medvlm_dpo.vocab import CLEAN_VIEWS, Batch, Example, ImageSource, Rows, Turn


class Encoder(Protocol):
    """What turns text into token ids; the backbones' `PromptEncoder`."""

    def prompt_ids(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Ids of a conversation that ends with a human turn."""
        ...

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Ids of an answer with its end-of-sequence token."""
        ...


class Scored(NamedTuple):
    """One sequence to score: the ids of prompt and answer, and the picture the prompt shows."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    image: ImageSource


@dataclass(frozen=True)
class EncodedExample:
    """One example as token ids.

    Args:
        id: of the record.
        image: its picture.
        prompt: ids of the conversation up to the answer.
        answers: ids by view, only of those the example has; on a corrupted picture the answer is the same.
        pair_weight: None where the record has none.
        error_type: None where the record does not say.
        corrupted: the corrupted picture, where the loss reads one.
        changed: by answer, 1 on the tokens the other answer does not have, where the loss asks.
    """

    id: str
    image: ImageSource
    prompt: tuple[int, ...]
    answers: Mapping[str, tuple[int, ...]]
    pair_weight: float | None
    error_type: str | None = None
    corrupted: ImageSource | None = None
    changed: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])

    def sequence(self, view: str) -> "Scored | None":
        """What a view scores, or None where the example does not have it."""
        clean = view.removesuffix("_corrupt")
        image = self.image if view == clean else self.corrupted
        answer = self.answers.get(clean)
        return None if answer is None or image is None else Scored(self.prompt, answer, image)


def encode_examples(
    examples: Sequence[Example],
    partners: Sequence[int] | None,
    encoder: Encoder,
    *,
    corrupted: Callable[[Example], ImageSource] | None = None,
    with_changes: bool = False,
) -> tuple[EncodedExample, ...]:
    """Tokenises every example once.

    Args:
        examples: records.
        partners: for every example the index of the one whose answer is its `unmatched` answer; None when no loss asks.
        encoder: the backbone's.
        corrupted: makes the corrupted picture of an example; None when no loss asks.
        with_changes: whether a loss asks which tokens differ between the answers.
    """
    encoded: list[EncodedExample] = []
    for index, example in enumerate(examples):
        texts = {"chosen": example.chosen, "rejected": example.rejected}
        if partners is not None:
            texts["unmatched"] = own_answer(examples[partners[index]])
        answers = {view: encoder.answer_ids(text) for view, text in texts.items() if text is not None}
        encoded.append(
            EncodedExample(
                id=example.id,
                image=example.image,
                prompt=encoder.prompt_ids(example.turns),
                answers=answers,
                pair_weight=example.pair_weight,
                error_type=example.error_type,
                corrupted=corrupted(example) if corrupted is not None else None,
                changed=changed_tokens(answers) if with_changes else {},
            )
        )
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
    draw: Callable[[str], float],
) -> Batch:
    """One micro-batch in the plain layout.

    Args:
        examples: this micro-batch.
        views: views to score.
        global_positions: position of every example in the global batch.
        pixels: preprocessing of one image.
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
        rows=_plain_rows(scored, pixels),
        answers=answers,
        facts=_facts(examples, answers.keys(), width=max(len(sequence.answer) for sequence in scored), draw=draw),
        example_ids=tuple(example.id for example in examples),
        global_positions=torch.tensor(list(global_positions)),
        error_types=tuple(example.error_type for example in examples),
    )


def _plain_rows(sequences: Sequence[Scored], pixels: Callable[[ImageSource], Tensor]) -> Rows:
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
