"""Hydra's and OmegaConf's exceptions in our form: one sentence per problem, with the nearest valid name and what to do."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigTypeError, InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException, ValidationError
from yaml import YAMLError

from medvlm_dpo.errors import nearest

MISTAKES = (HydraException, OmegaConfBaseException, YAMLError)

_NO_SETTINGS = ("hydra", "card")  # nothing to choose: the launcher's own settings, and a loss's words for people
_TYPE_WORDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "text"}


def sentences(error: BaseException, overrides: Sequence[str] = (), choices: Mapping[str, Any] | None = None) -> list[str]:
    """The problems an exception of Hydra, OmegaConf or the yaml reader stands for.

    Args:
        error: the exception.
        overrides: overrides of the job, for naming the choice a key is missing from.
        choices: names chosen per group where the overrides say nothing.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return [_unknown_choice(error)]
    if isinstance(error, OverrideParseException):
        reason = _one_line(error.message.split("See https")[0])
        return [f"{error.override}: cannot be read ({reason}); write key=value, and quote special characters: 'key=\"a,b\"'"]
    cause = next((item for item in (error.__cause__, error) if isinstance(item, OmegaConfBaseException)), None)
    if cause is not None:
        return [_cause_words(error, cause, overrides, choices or {})]
    return [_must_choose(str(error)) or _misplaced_override(str(error)) or _one_line(str(error))]


def first_override_at_fault(error: BaseException, overrides: Sequence[str]) -> str | None:
    """The override an exception names, so that the others can be tried without it; None when it names none."""
    key = _named_key(error) or _merged_key(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return next((item for item in overrides if item.split("=", 1)[0].lstrip("+") == group and item.endswith(choice)), None)
    return next((item for item in overrides if key is not None and item.split("=", 1)[0] == key), None)


def missing_value(key: str) -> str:
    """The sentence for a value that has no default."""
    key = key.removeprefix("hydra.runtime.choices.")  # a group without a choice
    return f"{key}: a value is required and has no default; give {key}=..."


def _cause_words(error: BaseException, cause: OmegaConfBaseException, overrides: Sequence[str], choices: Mapping[str, Any]) -> str:
    key = _named_key(error)
    if key is not None and isinstance(cause.parent_node, DictConfig):
        return _unknown_key(key, cause, overrides, choices)
    if isinstance(cause, ValidationError):
        return _wrong_type(error, cause)
    if isinstance(cause, MissingMandatoryValue):
        return missing_value(str(cause.full_key))
    if isinstance(cause, ConfigTypeError) and str(cause.msg).startswith("Cannot merge DictConfig with ListConfig"):
        return f"{cause.full_key}: expects names with their values, got a list; give each by its name, {cause.full_key}.NAME=..."
    if isinstance(cause, InterpolationResolutionError):
        return f"{cause.full_key}: its reference cannot be resolved ({str(cause.msg).splitlines()[0]}); check the name inside ${{...}}"
    return _one_line(str(error))


def _unknown_choice(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    options = sorted(error.options or ())
    if not group:
        return _one_line(str(error))
    if not options:
        return f"{group}: there is no such group, so no '{choice}' in it; `python run.py --help` lists all groups"
    hint = nearest(choice, options)
    near = hint if hint.startswith("; did you mean") else ""
    return f"{group}: there is no '{choice}'{near} (choices: {', '.join(options)})"


def _unknown_key(key: str, cause: OmegaConfBaseException, overrides: Sequence[str], choices: Mapping[str, Any]) -> str:
    missing = str(cause.key)
    parts = key.split(".")
    place = ".".join(parts[: parts.index(missing)]) if missing in parts else ""
    valid = [str(name) for name in _keys(cause.parent_node) if not str(name).startswith("_") and name not in _NO_SETTINGS]
    if not place:
        return f"{key}: there is no key or group '{missing}'{nearest(missing, valid)}"
    group = place.split(".")[0]
    chosen = next((item.split("=", 1)[1] for item in overrides if item.split("=", 1)[0] == group), choices.get(group))
    owner = f"{group}={chosen}" if chosen is not None else place
    return f"{key}: {owner} has no key '{missing}'{nearest(missing, valid)}"


def _keys(node: object) -> list[Any]:
    return list(node.keys()) if isinstance(node, DictConfig) else []


def _wrong_type(error: BaseException, cause: ValidationError) -> str:
    found = re.search(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", str(cause.msg))
    place = str(cause.full_key or _merged_key(error) or "configuration")
    if found is None:
        return f"{place}: {_one_line(str(cause.msg))}"
    return f"{place}: expects {_TYPE_WORDS.get(found[2], found[2])}, got '{found[1]}'"


def _must_choose(message: str) -> str | None:
    found = re.search(r"You must specify '([^']+)'", message)
    if found is None:
        return None
    options = re.findall(r"^\t(\S+)", message, flags=re.MULTILINE)
    return f"{found[1]}: a choice is required; give {found[1]}=... (choices: {', '.join(sorted(options))})"


def _misplaced_override(message: str) -> str | None:
    """A yaml overrides a group of the top without saying so: Hydra looks for it below the yaml's own group."""
    found = re.search(r"In '([^']+)': Could not override '([^'@]+)@([^']+)\.\2'", message)
    if found is None:
        return None
    file, group, package = found.groups()
    return f"{file}: `override /{group}` looks for {group} inside {package}; it must read `override /{group}@_global_.{group}: ...`"


def _named_key(error: BaseException) -> str | None:
    found = re.search(r"Could not (?:override|append to config|delete from config)\.? ?'?([^'\n]*)'", str(error))
    return found[1] if found else None


def _merged_key(error: BaseException) -> str | None:
    found = re.search(r"Error merging override ([^=\s]+)=", str(error))
    return found[1].lstrip("+") if found else None


def _one_line(message: str) -> str:
    return "; ".join(line.strip() for line in message.splitlines() if line.strip())
