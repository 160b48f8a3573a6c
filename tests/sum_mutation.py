"""Small mistakes in the yaml of a sum, and whether golden numbers notice: a term lost, a weight or setting changed, a lookalike."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from loss_world import Golden, golden_rows, loss_node, misses

from medvlm_dpo.config.catalogue import loss_names
from medvlm_dpo.errors import InputError

SUMS = [name for name in loss_names() if "terms" in loss_node(name)]
Node = dict[str, Any]
Mutant = Callable[[Golden], Node]  # from a row to the mistaken yaml of that row


def bare(node: Mapping[str, Any]) -> Node:
    """A loss without its card and shared settings, which are already filled in below `terms`."""
    if "terms" not in node:
        return {key: value for key, value in node.items() if key != "card"}
    return {"weights": dict(node["weights"]), "terms": {name: bare(term) for name, term in node["terms"].items()}}


def numbers(node: Mapping[str, Any]) -> dict[str, float]:
    """A node's settings that are numbers."""
    return {key: value for key, value in node.items() if isinstance(value, int | float) and not isinstance(value, bool)}


def terms_of(node: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Node]]:
    """Every term with its path, those of nested sums too."""
    for name, term in node["terms"].items():
        yield (*path, name), term
        if "terms" in term:
            yield from terms_of(term, (*path, name))


def functions() -> dict[str, Node]:
    """Every function of the catalogue with the settings of one of its yamls, by its full name."""
    nodes = [bare(loss_node(name)) for name in loss_names()]
    found = [term for node in nodes for term in ([leaf for _, leaf in terms_of(node)] if "terms" in node else [node])]
    return {term["_target_"]: term for term in found if "_target_" in term}


def edited(path: tuple[str, ...], edit: Callable[[Node, str], None]) -> Mutant:
    """The mutant that edits one term, given the sum it stands in and its name there."""

    def mutant(golden: Golden) -> Node:
        node = copy.deepcopy(bare(loss_node(golden.loss, *golden.overrides)))
        parent = node
        for name in path[:-1]:
            parent = parent["terms"][name]
        edit(parent, path[-1])
        return node

    return mutant


def scaled_weight(factor: float) -> Callable[[Node, str], None]:
    def edit(parent: Node, name: str) -> None:
        parent["weights"][name] *= factor

    return edit


def other_setting(key: str, change: Callable[[Any], Any]) -> Callable[[Node, str], None]:
    def edit(parent: Node, name: str) -> None:
        parent["terms"][name][key] = change(parent["terms"][name][key])

    return edit


def exchanged(other: Node) -> Callable[[Node, str], None]:
    def edit(parent: Node, name: str) -> None:
        parent["terms"][name] = {**other, **numbers(parent["terms"][name])}

    return edit


def halved(value: float) -> float:
    """Half of a number, and 1 instead of 0."""
    return value / 2 if value else 1.0


def halved_shared(key: str) -> Mutant:
    """A setting of the sum itself, halved as on the command line, so that it reaches the terms through their references."""

    def mutant(golden: Golden) -> Node:
        value = loss_node(golden.loss, *golden.overrides)[key]
        return bare(loss_node(golden.loss, *golden.overrides, f"loss.{key}={halved(value)}"))

    return mutant


def mutants(name: str) -> Iterator[tuple[str, Mutant]]:
    """Every mistaken yaml of a sum, with a description."""
    node = loss_node(name)
    for key in numbers(node):
        yield f"shared {key} halved", halved_shared(key)
    for path, term in terms_of(node):
        where = ".".join(path)
        yield f"{where} dropped", edited(path, scaled_weight(0))
        yield f"weight of {where} doubled", edited(path, scaled_weight(2))
        for key, value in bare(term).items():
            if key in numbers(term):
                yield f"{where}.{key} halved", edited(path, other_setting(key, halved))
            elif isinstance(value, dict) and "_target_" in value:
                yield f"{where}.{key} fixed at a number", edited(path, other_setting(key, lambda _: 0.5))
        for target, other in functions().items():
            if target != term.get("_target_", target) and numbers(other).keys() == numbers(term).keys():
                yield f"{where} exchanged for {target}", edited(path, exchanged(other))


def outcome(golden: Golden, mutant: Mutant) -> str:
    """`missed` or `kept`, or `cannot run` where the row does not serve what the mutant asks for or nothing would be trained."""
    try:
        return "kept" if misses(replace(golden, node=mutant(golden))) is None else "missed"
    except (InputError, KeyError):
        return "cannot run"


def survives(rows: list[Golden], mutant: Mutant) -> bool:
    """Whether the mutant runs on some row and misses none."""
    kept = False
    for golden in rows:
        found = outcome(golden, mutant)
        if found == "missed":
            return False
        kept = kept or found == "kept"
    return kept


def rows_of(name: str) -> list[Golden]:
    """The golden rows of one loss."""
    return [golden for golden in golden_rows().values() if golden.loss == name]


def survivors_of(name: str) -> tuple[int, list[str]]:
    """How many mutants a sum has, and those that run and miss no row."""
    rows, tried = rows_of(name), list(mutants(name))
    return len(tried), [f"{name}: {what}" for what, mutant in tried if survives(rows, mutant)]
