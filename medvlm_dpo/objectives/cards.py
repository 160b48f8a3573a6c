"""Objective cards: what a loss yaml says about itself, for people. A card never changes what is computed, nor a cell's identity."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, cast

from medvlm_dpo.objectives.nodes import as_node, hint, shown

EVIDENCE = ("paper", "official code", "derived")


@dataclass(frozen=True)
class Card:
    """One objective in words. In formulas a and b are the log-ratios, policy minus reference, of the chosen and the rejected answer.

    Args:
        title: the full name.
        formula: one example's loss in plain text.
        evidence: `paper` (the formula is quoted from it), `official code` (read in a repository of its authors), or `derived`.
        source: where it comes from: arXiv number, repository with file, lines or function, and commit.
        settings: for every setting its range, unit and where the default comes from.
        deviations: in what the formula differs from the source, one sentence each.
        released: the yaml of the behaviour that was released, where the plain name differs from it.
        clamps: what is clamped and why.
        pitfalls: what users of this loss stumble over.
        need_not_fall: why the loss of a fixed batch may not fall within a few steps; empty where it must.
    """

    title: str
    formula: str
    evidence: str
    source: str
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    deviations: tuple[str, ...] = ()
    released: str = ""
    clamps: tuple[str, ...] = ()
    pitfalls: tuple[str, ...] = ()
    need_not_fall: str = ""


_LISTS = frozenset({"deviations", "clamps", "pitfalls"})


def card_of(node: Mapping[str, Any]) -> Card | None:
    """The card of a loss node, or None where its yaml has none, as a user's own loss may."""
    card = as_node(node.get("card"))
    if card is None:
        return None
    words: dict[str, Any] = {key: tuple(value) if key in _LISTS else value for key, value in card.items()}
    return Card(**words)


def card_problems(node: Mapping[str, Any], where: str) -> list[str]:
    """What is wrong with the form of a node's card: unknown or missing keys, and values of the wrong kind."""
    if "card" not in node:
        return []
    card = as_node(node["card"])
    if card is None:
        return [f"{where}.card must map keys to words, got {shown(node['card'])}"]
    known = [item.name for item in fields(Card)]
    problems = [f"{where}.card.{key}: a card has {', '.join(known)}{hint(key, known)}" for key in card if key not in known]
    required = [item.name for item in fields(Card) if item.default is MISSING and item.default_factory is MISSING]
    problems += [f"{where}.card.{key} is missing" for key in required if key not in card]
    problems += [
        f"{where}.card.{key} must be {_kind(key)}, got {shown(value)}"
        for key, value in card.items()
        if key in known and not _fits(key, value)
    ]
    if "evidence" in card and card["evidence"] not in EVIDENCE:
        problems.append(f"{where}.card.evidence must be one of {', '.join(EVIDENCE)}, got {shown(card['evidence'])}")
    return problems


def _kind(key: str) -> str:
    return "a list of sentences" if key in _LISTS else "a mapping from settings to words" if key == "settings" else "a text"


def _fits(key: str, value: object) -> bool:
    if key in _LISTS:
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in cast("Sequence[object]", value))
    if key == "settings":
        node = as_node(value)
        return node is not None and all(isinstance(item, str) for item in node.values())
    return isinstance(value, str)
