"""Examples as token ids."""

from collections.abc import Sequence

import pytest
from pictures import Picture

from medvlm_dpo.data.changes import changed_tokens
from medvlm_dpo.data.encoding import encode_examples, own_answer
from medvlm_dpo.vocab import Example, Turn


class Letters:
    """Encodes letters; a prompt is its turns joined."""

    def prompt_ids(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        return tuple(ord(letter) for turn in turns for letter in turn.text)

    def answer_ids(self, text: str) -> tuple[int, ...]:
        return (*(ord(letter) for letter in text), 2)


def test_encoding_takes_the_partners_own_answer() -> None:
    pairs = [
        Example("a", Picture("0"), (Turn("human", "Q"),), "yes", "no", pair_weight=0.3),
        Example("b", Picture("1"), (Turn("human", "R"),), None, "left"),
    ]

    first, second = encode_examples(pairs, (1, 0), Letters())

    assert first.answers == {
        "chosen": Letters().answer_ids("yes"),
        "rejected": Letters().answer_ids("no"),
        "unmatched": Letters().answer_ids("left"),
    }
    assert second.answers == {"rejected": Letters().answer_ids("left"), "unmatched": Letters().answer_ids("yes")}
    assert first.pair_weight == 0.3
    assert encode_examples(pairs, None, Letters())[0].answers.keys() == {"chosen", "rejected"}


def test_example_without_any_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="example x has no answer"):
        own_answer(Example("x", Picture("0"), (), None, None))


@pytest.mark.parametrize(
    ("chosen", "rejected", "chosen_mask", "rejected_mask"),
    [
        ([1, 2, 3, 4, 5], [1, 2, 3, 9, 5], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]),  # a match of one token is chance
        ([1, 2], [1, 2], [1, 1], [1, 1]),  # too short to match
        ([1, 2, 3], [1, 2, 3], [0, 0, 0], [0, 0, 0]),
        ([8, 1, 2, 3, 4, 9, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7], [1, 0, 0, 0, 0, 1, 0, 0, 0], [0] * 7),
        ([1, 2, 3, 4] * 60, [1, 2, 3, 4] * 60, [0] * 240, [0] * 240),  # frequent tokens are no junk
    ],
)
def test_changed_tokens(chosen: list[int], rejected: list[int], chosen_mask: list[int], rejected_mask: list[int]) -> None:
    changed = changed_tokens({"chosen": chosen, "rejected": rejected})

    assert {view: list(mask) for view, mask in changed.items()} == {"chosen": chosen_mask, "rejected": rejected_mask}


def test_an_answer_alone_has_no_changed_tokens() -> None:
    assert changed_tokens({"chosen": [1, 2, 3], "unmatched": [1, 2, 3]}) == {}
