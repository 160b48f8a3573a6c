"""Everything that can be said about one composed loss: its card, its values, its terms and its needs, gathered for whoever prints them."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.cards import Card, card_of
from medvlm_dpo.objectives.needs import needs_of
from medvlm_dpo.objectives.nodes import RESERVED, as_node, load_function
from medvlm_dpo.objectives.terms import Term, build_objective, problems_of

SUMS = "sums"
_OF_A_SUM = ("terms", "weights")


class Setting(NamedTuple):
    """One setting of a loss: its key in the yaml, its value as text, and what the card says about it."""

    key: str
    value: str
    words: str


class TermSheet(NamedTuple):
    """One function of a sum: its name, its weight, its formula (of its card, else the first line of its docstring) and its settings."""

    name: str
    weight: float
    formula: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Sheet:
    """What is known of one loss.

    Args:
        name: as it is chosen on the command line.
        family: the file of the function; `sums` for a sum of terms.
        card: None where the yaml has none.
        docstring: of the function, blank for a sum.
        settings: those of the loss itself; of a sum, the shared ones.
        terms: of a sum, nested ones flattened; none for a lone function.
        left_out: of a sum, the terms of weight 0: a card's formula may still have them.
        needs: what `needs_of` says.
        corruption: the corruption chosen beside the loss.
        reference: the reference chosen beside it.
        is_changed: a command gave it other terms, weights or settings of single terms than it ships with, so that the card's
            formula is not what is trained.
        see_also: the released behaviour that the card names, with its title.
    """

    name: str
    family: str
    card: Card | None
    docstring: str
    settings: tuple[Setting, ...]
    terms: tuple[TermSheet, ...]
    left_out: tuple[str, ...]
    needs: Mapping[str, Any]
    corruption: str
    reference: str
    is_changed: bool = False
    see_also: str = ""


def sheet_of(name: str, node: Mapping[str, Any], *, corruption: str, reference: str, batch_size: int) -> Sheet:
    """Gathers the sheet of one composed loss.

    Args:
        name: of the loss.
        node: its resolved yaml.
        corruption: name of the corruption chosen beside it.
        reference: name of the reference chosen beside it.
        batch_size: examples of the global batch.

    Raises:
        InputError: with every problem of the node.
    """
    problems = problems_of(node, batch_size=batch_size)
    if problems:
        raise InputError(problems)
    objective = build_objective(node, batch_size=batch_size)
    function = None if objective.is_sum else objective.terms[0].bound.function
    return Sheet(
        name=name,
        family=SUMS if function is None else function.__module__.rpartition(".")[2],
        card=card_of(node),
        docstring="" if function is None else _docstring(function),
        settings=_settings(node),
        terms=tuple(_term(term, _node_at(node, term.name)) for term in objective.terms) if objective.is_sum else (),
        left_out=tuple(_left_out(node)),
        needs=needs_of(objective),
        corruption=corruption,
        reference=reference,
    )


def _term(term: Term, node: Mapping[str, Any]) -> TermSheet:
    card = card_of(node)
    formula = card.formula if card else _docstring(term.bound.function).partition("\n")[0]
    return TermSheet(term.name, term.weight, formula, _settings(node))


def _left_out(node: Mapping[str, Any]) -> Iterator[str]:
    """Names of the terms of weight 0, flattened as those that count."""
    for name, term in node.get("terms", {}).items():
        if node["weights"][name] == 0:
            yield name
        else:
            yield from (f"{name}/{inner}" for inner in _left_out(term))


def _node_at(node: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The yaml of a term by its flattened name, e.g. of `mdpo/dpo`."""
    for part in name.split("/"):
        node = node["terms"][part]
    return node


def _settings(node: Mapping[str, Any]) -> tuple[Setting, ...]:
    """The node's own settings, and after them what else the card has words for, such as one weight of a sum."""
    card = card_of(node)
    words = dict(card.settings) if card else {}
    own = [key for key in node if key not in RESERVED and key not in _OF_A_SUM]
    keys = dict.fromkeys([*own, *words])
    return tuple(Setting(key, _value_text(_value_at(node, key)), words.get(key, "")) for key in keys)


def _value_at(node: Mapping[str, Any], key: str) -> object:
    """The value of a key, or of a dotted one like `weights.copo`; blank where there is none."""
    found: object = node
    for part in key.split("."):
        found = (as_node(found) or {}).get(part, "")
    return found


def _value_text(value: object) -> str:
    node = as_node(value)
    if node is None or "_target_" not in node:
        return str(value)
    function = load_function(node, "")
    name = function if isinstance(function, str) else function.__name__
    settings = ", ".join(f"{key} {_value_text(item)}" for key, item in node.items() if key not in RESERVED)
    return f"{name}({settings})"


def _docstring(function: Callable[..., Any]) -> str:
    return inspect.cleandoc(function.__doc__ or "")
