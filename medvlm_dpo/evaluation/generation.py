"""Answers to questions: greedy, batched by length, independent of batch size and order."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.vocab import Question


class Answer(NamedTuple):
    """One generated answer. `stopped` is False when it was cut at the longest length allowed."""

    question_id: str
    text: str
    num_tokens: int
    stopped: bool


def generate_answers(
    backbone: AbstractBackbone,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    batch_size: int,
    report: Callable[[int, int], None],
) -> list[Answer]:
    """Answers in the order of the questions.

    Args:
        backbone: the model as it stands, adapter included.
        questions: what to ask.
        max_new_tokens: longest answer in tokens, its end included.
        batch_size: questions per batch.
        report: called with (done, total) after every batch.
    """
    prompts = [backbone.encoder.prompt_ids(question.turns) for question in questions]
    order = sorted(
        range(len(questions)), key=lambda index: (len(prompts[index]), questions[index].image.key)
    )  # little padding, images shared
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        images = {questions[index].image.content_hash(): questions[index].image for index in part}
        places = {content: place for place, content in enumerate(images)}
        generated = backbone.generate(
            [prompts[index] for index in part],
            backbone.pictures(list(images.values())),
            [places[questions[index].image.content_hash()] for index in part],
            max_new_tokens=max_new_tokens,
        )
        for index, ids in zip(part, generated, strict=True):
            text = backbone.encoder.text_of(ids)
            answers[index] = Answer(questions[index].id, text, len(ids), stopped=len(ids) < max_new_tokens)
        report(len(answers), len(questions))
    return [answers[index] for index in range(len(questions))]
