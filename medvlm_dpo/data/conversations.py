"""LLaVA conversations: turns of `human` and `gpt`, with the image placeholder wherever the data put it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from medvlm_dpo.data.json_records import Fields, kind_of
from medvlm_dpo.vocab import Turn

IMAGE_PLACEHOLDER = "<image>"
ROLES = ("human", "gpt")


class Conversation(NamedTuple):
    """Everything before the last answer, and the last answer; None where the conversation ends with a question."""

    context: tuple[Turn, ...]
    answer: str | None


def without_placeholder(text: str) -> str:
    """The text without `<image>` and without blanks at its ends.

    Published files put the placeholder before the question, after it, or leave it out; where the picture goes is the
    backbone's business. Inside a text it leaves one blank, or one line break where it stood on a line of its own.
    """
    pieces = [piece for piece in text.split(IMAGE_PLACEHOLDER) if piece.strip()]
    joined = pieces[0] if pieces else ""
    for piece in pieces[1:]:
        on_own_line = joined.rstrip(" \t").endswith("\n") or piece.lstrip(" \t").startswith("\n")
        joined = joined.rstrip() + ("\n" if on_own_line else " ") + piece.lstrip()
    return joined.strip()


def read_conversation(fields: Fields, value: Any, name: str, *, answer_required: bool = True) -> Conversation | None:
    """A conversation that starts with `human`, alternates, and ends with `gpt`.

    Args:
        fields: where flaws go.
        value: the JSON value.
        name: its key, for messages.
        answer_required: whether ending with a question is a flaw.

    Returns:
        None where there is a flaw.
    """
    if not isinstance(value, list) or not value:
        fields.add(f"{name} is {'an empty list' if value == [] else kind_of(value)}; expected a list of turns")
        return None
    turns = [_turn(fields, turn, f"{name}, turn {number}", number) for number, turn in enumerate(value, 1)]
    complete = [turn for turn in turns if turn is not None]
    if len(complete) < len(turns):
        return None
    if len(complete) % 2 == 0:
        return Conversation(tuple(complete[:-1]), complete[-1].text)
    if not answer_required:
        return Conversation(tuple(complete), None)
    fields.add(f"{name} has {len(complete)} turn{'s' if len(complete) != 1 else ''}; it must end with an answer (`gpt`)")
    return None


def first_difference(context: Sequence[Turn], other: Sequence[Turn]) -> int:
    """Number (from 1) of the first turn in which two contexts differ."""
    for number, (turn, other_turn) in enumerate(zip(context, other, strict=False), 1):
        if turn != other_turn:
            return number
    return min(len(context), len(other)) + 1


def _turn(fields: Fields, value: Any, name: str, number: int) -> Turn | None:
    role = ROLES[(number - 1) % 2]
    if not isinstance(value, dict) or not isinstance(value.get("value"), str):
        fields.add(f'{name} is not {{"from": ..., "value": text}}')
        return None
    if value.get("from") != role:
        fields.add(f"{name} must be from `{role}`: turns alternate and the first is `human`", str(value.get("from")))
        return None
    text = value["value"]
    placeholders = text.count(IMAGE_PLACEHOLDER)
    if placeholders > (1 if number == 1 else 0):
        fields.add(f"{name} holds {IMAGE_PLACEHOLDER} {placeholders} times; a record has one image, shown in the first turn")
        return None
    text = fields.clean(without_placeholder(text), f"{name} ({'question' if role == 'human' else 'answer'})")
    return Turn(role, text) if text else None
