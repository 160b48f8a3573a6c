"""Prompts as token ids: golden structure, text that stays text, and templates that are refused."""

from pathlib import Path
from typing import Any

import pytest
from core_world import PROMPT
from transformers import AutoTokenizer, PreTrainedTokenizerFast, tokenization_utils_base

from medvlm_dpo.backbones.prompt import PromptEncoder, PromptFormat, prompt_format
from medvlm_dpo.errors import InputError
from medvlm_dpo.vocab import Turn

IMAGE_ID, NUM_IMAGE_TOKENS = 3, 5
BOS, EOS = 1, 2
SPECIAL_IDS = {0, BOS, EOS, IMAGE_ID}


@pytest.fixture(scope="module")
def tokenizer(untrained_model: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(untrained_model, local_files_only=True)


def encoder_of(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> PromptEncoder:
    template = PromptFormat(**{**PROMPT, **changes})
    return PromptEncoder(tokenizer, template, image_token_id=IMAGE_ID, num_image_tokens=NUM_IMAGE_TOKENS, max_length=512)


def plain(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def test_prompt_is_bos_text_image_text(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = encoder_of(tokenizer).prompt_ids((Turn("human", "Where?"),))

    assert list(ids) == [BOS, *plain(tokenizer, "[INST] "), *[IMAGE_ID] * NUM_IMAGE_TOKENS, *plain(tokenizer, "\nWhere? [/INST]")]


def test_prompt_without_bos_and_with_text_before_image(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = encoder_of(tokenizer, begin_of_sequence=False, image="Picture: <image>", human="{text}\n")

    assert list(encoder.prompt_ids((Turn("human", "Q"),))) == [
        *plain(tokenizer, "Picture: "),
        *[IMAGE_ID] * NUM_IMAGE_TOKENS,
        *plain(tokenizer, "Q\n"),
    ]


def test_conversation_has_one_image_and_ends_every_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = (Turn("human", "One?"), Turn("gpt", "Yes"), Turn("human", "Two?"))

    ids = encoder_of(tokenizer).prompt_ids(turns)

    first = encoder_of(tokenizer).prompt_ids(turns[:1])
    assert list(ids) == [*first, *plain(tokenizer, " Yes"), EOS, *plain(tokenizer, "[INST] Two? [/INST]")]
    assert ids.count(IMAGE_ID) == NUM_IMAGE_TOKENS


def test_answer_ends_with_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    assert list(encoder_of(tokenizer).answer_ids("left lung")) == [*plain(tokenizer, " left lung"), EOS]


@pytest.mark.parametrize("text", ["<image>", "</s>", "<s>", "<pad>", "a</s>b<image>c", "{text}"])
def test_special_words_in_text_stay_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    encoder = encoder_of(tokenizer, gpt="{text}")

    answer = encoder.answer_ids(text)
    prompt = encoder.prompt_ids((Turn("human", text), Turn("gpt", text), Turn("human", text)))

    assert not SPECIAL_IDS & set(answer[:-1])
    assert tokenizer.decode(list(answer[:-1])) == text
    assert prompt.count(IMAGE_ID) == NUM_IMAGE_TOKENS
    assert prompt.count(EOS) == 1
    assert prompt.count(BOS) == 1


def test_accents_and_other_scripts_survive(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "œdème 左肺 ≥ 3 µm 🫁"

    assert tokenizer.decode(list(encoder_of(tokenizer, gpt="{text}").answer_ids(text)[:-1])) == text


@pytest.mark.parametrize(
    "roles", [(), ("gpt",), ("human", "gpt"), ("human", "human"), ("gpt", "human"), ("human", "gpt", "gpt", "human"), ("system",)]
)
def test_wrong_roles_are_refused(tokenizer: PreTrainedTokenizerFast, roles: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="alternates human and gpt"):
        encoder_of(tokenizer).prompt_ids(tuple(Turn(role, "text") for role in roles))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": "\n"}, "model.prompt.image: expected <image> exactly once"),
        ({"image": "<image><image>"}, "model.prompt.image: expected <image> exactly once"),
        ({"human": "[INST]"}, "model.prompt.human: expected {text} exactly once"),
        ({"gpt": "{text}{text}"}, "model.prompt.gpt: expected {text} exactly once"),
        ({"human": "<image>{text}"}, "model.prompt.human: <image> has no place"),
        ({"image": "<image>{text}"}, "model.prompt.image: {text} has no place"),
    ],
)
def test_template_errors_name_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        PromptFormat(**{**PROMPT, **changes})

    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(message)


def test_unknown_missing_and_mistyped_keys_are_told_together() -> None:
    node = {"begin_of_sequence": "yes", "image": "<image>", "humann": "{text}", "gpt": "{text}"}

    with pytest.raises(InputError) as caught:
        prompt_format(node)

    assert caught.value.problems == (
        "model.prompt.humann: there is no such key; did you mean human?",
        "model.prompt.human is missing",
        "model.prompt.begin_of_sequence: expected true or false, got 'yes'",
    )


def test_a_text_longer_than_the_tokenizer_expects_frightens_nobody(untrained_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(untrained_model, local_files_only=True, model_max_length=8)
    said: list[str] = []
    monkeypatch.setattr(tokenization_utils_base.logger, "warning", said.append)

    assert len(encoder_of(tokenizer).answer_ids("yes " * 40)) > 8

    assert said == []
    tokenizer.encode("yes " * 40)
    assert said, "otherwise this test could not see the warning"


def test_template_that_wants_bos_of_a_tokenizer_without_one(untrained_model: Path) -> None:
    without = AutoTokenizer.from_pretrained(untrained_model, local_files_only=True)
    without.bos_token = None

    with pytest.raises(InputError, match="begin_of_sequence=true, but the tokenizer has no"):
        encoder_of(without)
    assert encoder_of(without, begin_of_sequence=False).prompt_ids((Turn("human", "Q"),))
