"""Reading plain yaml nodes: the function a `_target_` names, and whether a value has the type a setting is annotated with."""

import difflib
import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

RESERVED = ("_target_", "_partial_", "card")  # the card is words for people: medvlm_dpo.objectives.cards


def as_node(value: object) -> Mapping[str, Any] | None:
    """The value as a yaml mapping, or None if it is something else."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else None


def number_of(value: object) -> float | None:
    """The value as a number, or None if it is something else; yaml's true and false are no numbers, a NaN neither."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return None if math.isnan(value) else float(value)


def shown(value: object) -> str:
    """A value as its yaml writer knows it."""
    return "null" if value is None else repr(value)


def hint(name: str, valid: Iterable[str]) -> str:
    """`; did you mean beta?` where a valid name is near, else nothing: the valid names stand in the message anyway."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def load_function(node: Mapping[str, Any], where: str) -> Callable[..., Any] | str:
    """The function that a node's `_target_` names, or the problem with it in one sentence."""
    target, partial = node["_target_"], node.get("_partial_", True)
    if partial is not True:
        return f"{where}._partial_ must be true (the tensors come later), got {shown(partial)}"
    if not isinstance(target, str) or "." not in target:
        return f"{where}._target_ must be a dotted name like package.module.function, got {shown(target)}"
    module_name, _, name = target.rpartition(".")
    try:
        names = vars(importlib.import_module(module_name))
    except ModuleNotFoundError as error:
        return f"{where}._target_: {target} does not exist (no module named {error.name!r})"
    except Exception as error:  # a user's module may fail in any way while it is imported
        return f"{where}._target_: {target} cannot be imported ({type(error).__name__}: {error})"
    public = {key: value for key, value in names.items() if callable(value) and not key.startswith("_")}
    if name not in public:
        return f"{where}._target_: {target} does not exist in {module_name}{hint(name, public)}"
    return public[name]


_TYPES: Mapping[type, str] = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}


def type_problem(value: object, annotation: object, where: str) -> str | None:
    """What is wrong with the type of a setting's value, if anything. Only plain annotations are checked."""
    expected = _TYPES.get(annotation) if isinstance(annotation, type) else None
    if expected is None:
        return None
    fits = number_of(value) is not None if annotation is float else type(value) is annotation
    return None if fits else f"{where} must be {expected}, got {shown(value)}"
