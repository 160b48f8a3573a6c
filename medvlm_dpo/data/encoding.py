"""Examples -> token ids, once per run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from medvlm_dpo.data.changes import changed_tokens
from medvlm_dpo.data.segments import Scored
from medvlm_dpo.vocab import Example, ImageSource, Turn


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

    def sequence(self, view: str) -> Scored | None:
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
