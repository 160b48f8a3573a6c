"""Unmatched answers: which other example's answer is scored on an example's image and prompt (KTO's z0)."""

import hashlib
from collections.abc import Sequence

from medvlm_dpo.data.encoding import own_answer
from medvlm_dpo.errors import InputError
from medvlm_dpo.vocab import Example


def unmatched_partners(examples: Sequence[Example]) -> tuple[int, ...]:
    """For every example the index of its partner: the next one with another answer in a cyclic order drawn from the data.

    The partner never depends on the batch, the seed or the machine, so its values can be cached and batch size 1 works.

    Raises:
        InputError: if all answers are equal.
    """
    order = sorted(range(len(examples)), key=lambda index: hashlib.sha256(examples[index].id.encode()).digest())
    answers = [own_answer(examples[index]).strip() for index in order]
    partner = [-1] * len(examples)
    following = _next_different(answers)
    if following is None:
        raise InputError(
            f"data: no other example has an answer different from id {examples[0].id}'s; unmatched answers need at least two different ones"
        )
    for place, index in enumerate(order):
        partner[index] = order[following[place]]
    return tuple(partner)


def _next_different(answers: Sequence[str]) -> list[int] | None:
    """For every place the next place, cyclically, that holds another text; None when all texts are equal."""
    if len(set(answers)) < 2:
        return None
    count = len(answers)
    following = [0] * count
    nearest_change = 0
    for place in reversed(range(2 * count)):  # twice around, so that the end sees the beginning
        here, after = answers[place % count], answers[(place + 1) % count]
        nearest_change = (place + 1) % count if here != after else nearest_change
        following[place % count] = nearest_change
    return following
