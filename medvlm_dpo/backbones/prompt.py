"""Prompt formats: conversations to token ids, built in chunks around the image so that no text can merge with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

from transformers import PreTrainedTokenizerFast

from medvlm_dpo.errors import InputError, nearest
from medvlm_dpo.vocab import Turn

IMAGE_MARK = "<image>"


@dataclass(frozen=True)
class PromptFormat:
    """A chat template as data.

    Args:
        begin_of_sequence: start with the tokenizer's begin-of-sequence token.
        image: what stands in front of the first question; holds `<image>` once.
        human: one question; `{text}` is replaced by it.
        gpt: one answer, without the end-of-sequence token that always follows.
    """

    begin_of_sequence: bool
    image: str
    human: str
    gpt: str

    def __post_init__(self) -> None:
        """Raises InputError when a placeholder is missing, doubled or in the wrong text."""
        problems = [
            f"model.prompt.{name}: expected {mark} exactly once in {text!r}"
            for name, text, mark in (("image", self.image, IMAGE_MARK), ("human", self.human, "{text}"), ("gpt", self.gpt, "{text}"))
            if text.count(mark) != 1
        ]
        problems += [
            f"model.prompt.{name}: {mark} has no place in {text!r}"
            for name, text, mark in (("image", self.image, "{text}"), ("human", self.human, IMAGE_MARK), ("gpt", self.gpt, IMAGE_MARK))
            if mark in text
        ]
        if problems:
            raise InputError(problems)


def prompt_format(node: Mapping[str, Any]) -> PromptFormat:
    """The format a yaml node describes.

    Raises:
        InputError: with every key that is unknown, missing or of the wrong type.
    """
    kinds = {field.name: field.type for field in fields(PromptFormat)}
    problems = [f"model.prompt.{key}: there is no such key{nearest(str(key), tuple(kinds))}" for key in node if key not in kinds]
    problems += [f"model.prompt.{name} is missing" for name in kinds if name not in node]
    problems += [
        f"model.prompt.{name}: expected {'true or false' if kind is bool else 'text'}, got {node[name]!r}"
        for name, kind in kinds.items()
        if name in node and not (isinstance(kind, type) and isinstance(node[name], kind))
    ]
    if problems:
        raise InputError(problems)
    return PromptFormat(**node)


class PromptEncoder:
    """Conversations and answers to token ids.

    Args:
        tokenizer: a fast tokenizer with end-of-sequence set.
        prompt: the template.
        image_token_id: id that marks image positions; embedded as picture features, never as this token.
        num_image_tokens: positions one image takes.
        max_length: longest sequence the language model accepts, in tokens.

    Raises:
        InputError: if the tokenizer lacks a token the template needs.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        prompt: PromptFormat,
        *,
        image_token_id: int,
        num_image_tokens: int,
        max_length: int,
    ) -> None:
        problems = ["model.checkpoint: its tokenizer has no end-of-sequence token"] if tokenizer.eos_token_id is None else []
        if prompt.begin_of_sequence and tokenizer.bos_token_id is None:
            problems.append("model.prompt.begin_of_sequence=true, but the tokenizer has no begin-of-sequence token; set it to false")
        if problems:
            raise InputError(problems)
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.image_token_id = image_token_id
        self.num_image_tokens = num_image_tokens
        self.max_length = max_length
        self.end_id: int = cast("int", tokenizer.eos_token_id)  # typed as anything by transformers, checked above

    def prompt_ids(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Ids of a conversation that ends with a human turn; the image goes in front of the first question.

        Raises:
            ValueError: if the turns do not alternate human, gpt, ..., human.
        """
        roles = [turn.role for turn in turns]
        if roles != ["human", "gpt"] * (len(roles) // 2) + ["human"]:
            raise ValueError(f"a prompt alternates human and gpt turns and ends with human, got {roles}")
        ids = [cast("int", self.tokenizer.bos_token_id)] if self.prompt.begin_of_sequence else []
        for index, turn in enumerate(turns):
            if turn.role == "gpt":
                ids += self.answer_ids(turn.text)
            elif index == 0:
                ids += self._first_question(turn.text)
            else:
                ids += self._encode(self.prompt.human.replace("{text}", turn.text))
        return tuple(ids)

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Ids of one answer with its end-of-sequence token."""
        return (*self._encode(self.prompt.gpt.replace("{text}", text)), self.end_id)

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of an answer's ids, without special tokens and outer blanks."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _first_question(self, text: str) -> list[int]:
        # The mark is split off the template before the user's text goes in: text that contains "<image>" stays text.
        before, after = self.prompt.human.replace("{text}", self.prompt.image + "{text}").split(IMAGE_MARK)
        image = [self.image_token_id] * self.num_image_tokens
        return [*self._encode(before), *image, *self._encode(after.replace("{text}", text))]

    def _encode(self, text: str) -> list[int]:
        # verbose=False: lengths are checked against the context here, and the library's own warning would only frighten.
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return ids
