"""Objects from plain yaml nodes: `_target_` names a callable, the other keys are its arguments.

A node is a plain mapping, frozen in a cell's file, so nothing here knows Hydra. Special keys:

* `_target_`: dotted name of a class or function.
* `_partial_: true`: bind the given arguments, the code gives the rest.
* `_shared_: [path, image_root]`: keys that stand in this node only so that its children can refer to them by interpolation.
"""

import functools
import importlib
import inspect
import operator
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from medvlm_dpo.errors import InputError, nearest

SPECIAL_KEYS = ("_target_", "_partial_", "_shared_")
_POSITIONAL_ONLY, _REST = inspect.Parameter.POSITIONAL_ONLY, (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_PLAIN_TYPES: Mapping[type, tuple[type, ...]] = {float: (float, int), int: (int,), bool: (bool,), str: (str,), Path: (str,)}


def locate(target: str) -> Callable[..., Any]:
    """The callable with this dotted name.

    Raises:
        InputError: the module cannot be found, or it has no such name.
    """
    parts = target.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:end])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise  # the module exists and one of its own imports is missing: that message helps more than ours
            continue
        return _walk(found, module_name, parts[end:])
    raise InputError(f"_target_: {target} does not exist: there is no module {parts[0]}; give the full dotted name of a class or function")


def _walk(found: Any, module_name: str, names: list[str]) -> Callable[..., Any]:
    place = module_name
    for name in names:
        try:
            found = operator.attrgetter(name)(found)
        except AttributeError:
            public = [member for member in dir(found) if not member.startswith("_")]
            raise InputError(f"_target_: {place} has no '{name}'{_near_only(name, public)}") from None
        place = f"{place}.{name}"
    if not callable(found):
        raise InputError(f"_target_: {place} is no class or function")
    return found


def _near_only(name: str, valid: list[str]) -> str:
    """A module has too many names to list them all: the nearest one or nothing."""
    hint = nearest(name, valid)
    return hint if hint.startswith("; did you mean") else ""


def call_target(node: Mapping[str, Any]) -> Any:
    """Builds the object a node describes; nested nodes are built first, wherever they stand.

    Args:
        node: a mapping with `_target_`; values are plain yaml values or further nodes.

    Returns:
        What the target returns, or a `functools.partial` of it when the node says `_partial_: true`.

    Raises:
        InputError: the target does not exist.
    """
    function = locate(str(node["_target_"]))
    hints = _hints(function)
    arguments = {key: _as_path(_build(value), hints.get(key)) for key, value in settings_of(node).items()}
    return functools.partial(function, **arguments) if node.get("_partial_") else function(**arguments)


def call_if_any(node: Mapping[str, Any] | None) -> Any:
    """As `call_target`, or None where there is nothing to build: a group nobody reads is null, and a choice like `none` has no target."""
    return call_target(node) if node is not None and "_target_" in node else None


def settings_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a node that reach its target: neither special keys nor those listed under `_shared_`."""
    hidden = {*SPECIAL_KEYS, *(node.get("_shared_") or ())}
    return {key: value for key, value in node.items() if key not in hidden}


def _build(value: Any) -> Any:
    if isinstance(value, Mapping):
        return call_target(value) if "_target_" in value else {key: _build(item) for key, item in value.items()}
    return [_build(item) for item in value] if isinstance(value, list | tuple) else value


def check_targets(config: Mapping[str, Any], ignore: Collection[str] = (), served: Collection[str] = ()) -> list[str]:
    """Compares the keys of every node with the signature of its target, before anything is built.

    Args:
        config: a composed configuration, or any part of it.
        ignore: top-level keys that somebody else checks (losses: their positional parameters are tensors).
        served: parameters of the top-level nodes' targets that the code gives: the yaml may not, and is not offered them.

    Returns:
        One sentence per problem, each with the nearest valid name; empty when everything fits.
    """
    return [
        problem
        for group, part in config.items()
        if group not in ignore
        for path, node in _nodes(part, str(group))
        for problem in _check_node(path, node, served if path == group else ())
    ]


def _nodes(value: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield path, value
        for key, item in value.items():
            yield from _nodes(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _nodes(item, f"{path}[{index}]")


def _check_node(path: str, node: Mapping[str, Any], served: Collection[str]) -> list[str]:
    try:
        function = locate(str(node["_target_"]))
    except InputError as error:
        return [f"{path}.{problem}" for problem in error.problems]
    name = str(node["_target_"]).rpartition(".")[2]
    parameters = {key: parameter for key, parameter in inspect.signature(function).parameters.items() if key not in served}
    if any(parameter.kind in _REST for parameter in parameters.values()):
        return [
            f"{path}: {name} takes open-ended arguments (*args or **kwargs), which cannot be checked; name every setting in its signature"
        ]
    given = settings_of(node)
    valid = [key for key, parameter in parameters.items() if parameter.kind is not _POSITIONAL_ONLY]
    problems = [f"{path}.{key}: {name} takes no '{key}'{nearest(str(key), valid)}" for key in given if key not in valid]
    problems += [f"{path}._shared_: there is no key '{key}' here" for key in node.get("_shared_") or () if key not in node]
    if not node.get("_partial_"):
        problems += [
            f"{path}.{key} is missing: {name} needs it"
            for key, parameter in parameters.items()
            if parameter.default is parameter.empty and key not in given
        ]
    return problems + _check_types(path, name, function, given)


def _check_types(path: str, name: str, function: Callable[..., Any], given: Mapping[str, Any]) -> list[str]:
    """Only plain numbers, words and truth values are compared: richer types are the business of the target itself."""
    hints = _hints(function)
    return [
        f"{path}.{key}: {name} expects {_type_words(hints[key])}, got {value!r}"
        for key, value in given.items()
        if key in hints and not fits(value, hints[key])
    ]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function.__init__ if isinstance(function, type) else function)
    except (NameError, TypeError):  # names known to a type checker only
        return {}


def _as_path(value: Any, hint: Any) -> Any:
    """Yaml has no paths: a target that asks for one gets one."""
    asked = hint is Path or Path in typing.get_args(hint)
    return Path(value) if isinstance(value, str) and asked and str not in typing.get_args(hint) else value


def fits(value: Any, hint: Any) -> bool:
    """Whether a yaml value fits a plain annotation (bool, int, float, str, None and unions of them); others always fit."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in typing.get_args(hint))
    if hint is type(None):
        return value is None
    if not isinstance(hint, type) or hint not in _PLAIN_TYPES:
        return True
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, _PLAIN_TYPES[hint])


def _type_words(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_type_words(part) for part in typing.get_args(hint))
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path", type(None): "null"}.get(
        hint, str(hint)
    )
