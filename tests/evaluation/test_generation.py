"""Generated answers: those of transformers, whatever the batch."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from core_world import make_backbone, make_questions
from transformers import LlavaForConditionalGeneration

from medvlm_dpo.backbones.llava import LlavaBackbone
from medvlm_dpo.evaluation.generation import Answer, generate_answers
from medvlm_dpo.vocab import Question

MAX_NEW_TOKENS = 8


@pytest.fixture(scope="module")
def backbone(untrained_model: Path) -> LlavaBackbone:
    """Random weights whose answers differ from question to question, and some of which end early."""
    made = make_backbone(untrained_model)
    language_model, head = made.module.get_submodule("model.language_model"), made.module.get_submodule("lm_head")
    with torch.no_grad():
        for weight in language_model.parameters():
            if weight.dim() == 2:
                weight.mul_(3)
        head.get_parameter("weight")[made.encoder.end_id] *= 4
    return made


def silent(done: int, total: int) -> None:
    """Reports nothing."""


def answers_of(backbone: LlavaBackbone, questions: tuple[Question, ...], batch_size: int) -> list[Answer]:
    return generate_answers(backbone, questions, max_new_tokens=MAX_NEW_TOKENS, batch_size=batch_size, report=silent)


def test_answers_do_not_depend_on_batch_size_or_order(backbone: LlavaBackbone) -> None:
    questions = make_questions(9)
    alone = answers_of(backbone, questions, 1)
    assert [answer.question_id for answer in alone] == [question.id for question in questions]
    assert len({answer.text for answer in alone}) > 4, "answers that are all equal would prove nothing"
    assert {answer.stopped for answer in alone} == {True, False}, "some end by themselves, some are cut"

    for batch_size in (3, 8):
        assert answers_of(backbone, questions, batch_size) == alone
    shuffled = tuple(random.Random(0).sample(questions, len(questions)))
    by_id = {answer.question_id: answer for answer in answers_of(backbone, shuffled, 4)}
    assert [by_id[question.id] for question in questions] == alone


def test_answers_are_those_of_transformers(backbone: LlavaBackbone, untrained_model: Path) -> None:
    theirs: Any = LlavaForConditionalGeneration.from_pretrained(untrained_model, local_files_only=True)
    theirs.load_state_dict(backbone.module.state_dict())
    for question, answer in zip(make_questions(5), answers_of(backbone, make_questions(5), 5), strict=True):
        prompt = torch.tensor([backbone.encoder.prompt_ids(question.turns)])
        generated = theirs.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            pixel_values=backbone.pixels(question.image).unsqueeze(0),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
        )
        new = generated[0, prompt.shape[1] :].tolist()
        ended = new[-1] == backbone.encoder.end_id
        ids = new[:-1] if ended else new
        text: Any = backbone.encoder.tokenizer.decode(ids, skip_special_tokens=True)
        assert answer.text == text.strip()
        assert answer.num_tokens == len(ids)
        assert answer.stopped == ended


def test_cut_answers_have_every_token_allowed(backbone: LlavaBackbone) -> None:
    for answer in answers_of(backbone, make_questions(9), 4):
        assert answer.stopped == (answer.num_tokens < MAX_NEW_TOKENS)
    short = generate_answers(backbone, make_questions(9), max_new_tokens=1, batch_size=9, report=silent)
    assert {answer.num_tokens for answer in short if not answer.stopped} == {1}


def test_report_counts_up_to_the_total(backbone: LlavaBackbone) -> None:
    seen: list[tuple[int, int]] = []
    generate_answers(backbone, make_questions(5), max_new_tokens=1, batch_size=2, report=lambda done, total: seen.append((done, total)))

    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_no_questions_give_no_answers(backbone: LlavaBackbone) -> None:
    assert answers_of(backbone, (), 4) == []


def test_a_picture_of_several_questions_is_read_and_encoded_once(backbone: LlavaBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = make_questions(9)[:5]
    asked = (first, *others, *(replace(question, id=f"{question.id} on another picture", image=first.image) for question in others))
    alone = answers_of(backbone, asked, 1)
    assert len({answer.text for answer in alone}) > 3, "answers that are all equal would prove nothing"
    assert [answer.text for answer in alone[1:5]] != [answer.text for answer in alone[5:]], (
        "pictures that change nothing would prove nothing"
    )
    read: list[str] = []
    pixels = LlavaBackbone.pixels
    monkeypatch.setattr(LlavaBackbone, "pixels", lambda self, image: read.append(image.key) or pixels(self, image))

    assert answers_of(backbone, asked, 9) == alone
    assert sorted(read) == sorted({question.image.key for question in asked})
