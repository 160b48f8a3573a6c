"""Cards: the form is checked, and a card never changes what is computed."""

from typing import Any

import pytest
from loss_world import loss_node

from medvlm_dpo.objectives.cards import Card, card_of, card_problems
from medvlm_dpo.objectives.terms import build_objective, problems_of

CARD: dict[str, Any] = {"title": "A loss", "formula": "x", "evidence": "derived", "source": "nowhere"}


def test_a_card_is_read_with_its_lists() -> None:
    node = {"card": {**CARD, "pitfalls": ["one", "two"], "settings": {"beta": "> 0"}}}
    assert card_problems(node, "loss") == []
    assert card_of(node) == Card("A loss", "x", "derived", "nowhere", {"beta": "> 0"}, pitfalls=("one", "two"))
    assert card_of({}) is None
    assert card_problems({}, "loss") == []


@pytest.mark.parametrize(
    ("card", "problem"),
    [
        ("words", "loss.card must map keys to words, got 'words'"),
        ({**CARD, "pitfall": ["one"]}, "loss.card.pitfall: a card has title, formula, evidence, "),
        ({key: value for key, value in CARD.items() if key != "source"}, "loss.card.source is missing"),
        ({**CARD, "clamps": "one"}, "loss.card.clamps must be a list of sentences, got 'one'"),
        ({**CARD, "clamps": [{"a": "colon"}]}, "loss.card.clamps must be a list of sentences, got [{'a': 'colon'}]"),
        ({**CARD, "settings": {"beta": 0.1}}, "loss.card.settings must be a mapping from settings to words, got {'beta': 0.1}"),
        ({**CARD, "settings": "beta"}, "loss.card.settings must be a mapping from settings to words, got 'beta'"),
        ({**CARD, "title": 3}, "loss.card.title must be a text, got 3"),
        ({**CARD, "evidence": "rumour"}, "loss.card.evidence must be one of paper, official code, derived, got 'rumour'"),
    ],
)
def test_what_is_wrong_with_a_card(card: Any, problem: str) -> None:
    (found,) = card_problems({"card": card}, "loss")
    assert found.startswith(problem)
    assert problems_of({**loss_node("dpo"), "card": card}, batch_size=2) == [found]


def test_a_near_key_is_named() -> None:
    (found,) = card_problems({"card": {**CARD, "pitfall": ["one"]}}, "loss")
    assert found.endswith("did you mean pitfalls?")


def test_a_loss_needs_no_card_and_computes_the_same_without() -> None:
    node = loss_node("dpo")
    bare = {key: value for key, value in node.items() if key != "card"}
    assert problems_of(bare, batch_size=2) == []
    assert build_objective(bare, batch_size=2) == build_objective(node, batch_size=2)
