"""Unmatched answers: another example's, of another text, fixed by the data."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import Picture

from medvlm_dpo.data.partners import unmatched_partners
from medvlm_dpo.errors import InputError
from medvlm_dpo.vocab import Example, Turn


def examples_of(answers: list[str]) -> list[Example]:
    return [Example(f"id{place}", Picture("0"), (Turn("human", "Q"),), answer, None) for place, answer in enumerate(answers)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["yes", "no", " yes ", "left"]), min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_partner_has_another_text_whatever_the_order(answers: list[str], draw: random.Random) -> None:
    examples = examples_of(answers)
    if len({answer.strip() for answer in answers}) < 2:
        with pytest.raises(InputError, match="no other example has an answer different"):
            unmatched_partners(examples)
        return
    shuffled = draw.sample(examples, len(examples))

    by_id = {example.id: examples[partner].id for example, partner in zip(examples, unmatched_partners(examples), strict=True)}
    again = {example.id: shuffled[partner].id for example, partner in zip(shuffled, unmatched_partners(shuffled), strict=True)}

    texts = {example.id: (example.chosen or "").strip() for example in examples}
    assert all(texts[own] != texts[partner] for own, partner in by_id.items())
    assert by_id == again


def test_partners_are_spread_over_the_data() -> None:
    partners = unmatched_partners(examples_of([f"answer {place}" for place in range(50)]))

    assert sorted(partners) == list(range(50)), "with all answers different, each is somebody's partner once"
    assert any(partner != place + 1 for place, partner in enumerate(partners)), "the cycle is drawn, not the file's order"


def test_single_answers_and_rejected_only_count_by_their_own_answer() -> None:
    examples = [*examples_of(["yes", "yes"]), Example("r", Picture("0"), (Turn("human", "Q"),), None, "no")]

    assert unmatched_partners(examples)[:2] == (2, 2)


@pytest.mark.parametrize("number", [1, 4])
def test_equal_answers_cannot_be_unmatched(number: int) -> None:
    with pytest.raises(InputError, match="id id0"):
        unmatched_partners(examples_of(["yes"] * number))
