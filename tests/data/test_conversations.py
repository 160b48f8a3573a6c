import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvlm_dpo.data.conversations import IMAGE_PLACEHOLDER, read_conversation, without_placeholder
from medvlm_dpo.data.json_records import Fields
from medvlm_dpo.vocab import Turn

plain_text = st.text().filter(lambda text: IMAGE_PLACEHOLDER not in text)
blanks = st.text(alphabet=" \n\t", max_size=3)


@given(plain_text, blanks)
def test_before_after_and_missing_are_the_same_question(text: str, between: str) -> None:
    before, after = IMAGE_PLACEHOLDER + between + text, text + between + IMAGE_PLACEHOLDER
    assert without_placeholder(before) == without_placeholder(after) == without_placeholder(text) == text.strip()


@given(st.lists(st.one_of(plain_text, st.just(IMAGE_PLACEHOLDER)), max_size=6))
def test_nothing_is_left_to_remove(pieces: list[str]) -> None:
    once = without_placeholder(" ".join(pieces))
    assert IMAGE_PLACEHOLDER not in once
    assert without_placeholder(once) == once


@given(plain_text, plain_text)
def test_no_letter_is_lost(left: str, right: str) -> None:
    result = without_placeholder(f"{left} {IMAGE_PLACEHOLDER} {right}")
    assert "".join(result.split()) == "".join(f"{left} {right}".split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("look at <image> closely", "look at closely"),
        ("Question one.\n<image>\nA or B?", "Question one.\nA or B?"),
        ("<image>", ""),
        ("<im<image>age>", "<im age>"),
    ],
)
def test_inside_a_text_it_leaves_one_blank_or_line_break(text: str, expected: str) -> None:
    assert without_placeholder(text) == expected


def conversation(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def test_everything_before_the_last_answer_is_context() -> None:
    fields = Fields({})
    found = read_conversation(fields, conversation("<image>\nWhat?", " CT ", "Where?\n", " Left"), "conversations")
    assert fields.flaws == []
    assert found
    assert found.context == (Turn("human", "What?"), Turn("gpt", "CT"), Turn("human", "Where?"))
    assert found.answer == "Left"


def test_a_last_question_is_context_where_no_answer_is_required() -> None:
    fields = Fields({})
    found = read_conversation(fields, conversation("What?", "CT", "Where?"), "conversations", answer_required=False)
    assert fields.flaws == []
    assert found == ((Turn("human", "What?"), Turn("gpt", "CT"), Turn("human", "Where?")), None)
    answered = read_conversation(fields, conversation("What?", "CT"), "conversations", answer_required=False)
    assert answered == ((Turn("human", "What?"),), "CT")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "conversations is null; expected a list of turns"),
        ([], "conversations is an empty list"),
        ("text", "conversations is a string"),
        (["text"], r"turn 1 is not \{\"from\""),
        ([{"from": "human", "value": 3}], r"turn 1 is not \{\"from\""),
        ([{"from": "gpt", "value": "A"}], "turn 1 must be from `human`"),
        ([{"value": "A"}], "turn 1 must be from `human`"),
        (conversation("Q"), r"has 1 turn; it must end with an answer \(`gpt`\)"),
        (conversation("Q", "A", "Q"), r"has 3 turns; it must end with an answer \(`gpt`\)"),
        (conversation("Q", "  "), r"turn 2 \(answer\) is empty"),
        (conversation("<image>\n", "A"), r"turn 1 \(question\) is empty"),
        (conversation("<image><image>Q", "A"), "turn 1 holds <image> 2 times"),
        (conversation("Q", "A <image>"), "turn 2 holds <image> 1 times"),
        (conversation("Q", "A\ud800"), "turn 2 .* half a surrogate pair"),
    ],
)
def test_malformed_conversations_are_flaws(value: Any, reason: str) -> None:
    fields = Fields({})
    assert read_conversation(fields, value, "conversations") is None
    assert len(fields.flaws) == 1
    assert re.search(reason, fields.flaws[0].reason)
