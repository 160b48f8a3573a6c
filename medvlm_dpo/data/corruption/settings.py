"""Range checks of the settings of corruptions: every problem is named `corruption.<key>`, and all are told at once."""

import math
from collections.abc import Mapping, Sequence

from medvlm_dpo.errors import InputError, nearest

MISSING_POLICIES = ("error", "clean")


def positive(settings: Mapping[str, float]) -> list[str]:
    """One problem for every setting that is not a finite number above 0."""
    return [f"corruption.{key} must be > 0, got {value:g}" for key, value in settings.items() if not 0 < value < math.inf]


def share(settings: Mapping[str, float]) -> list[str]:
    """One problem for every setting that is no share: above 0, at most 1."""
    return [f"corruption.{key} must be > 0 and at most 1, got {value:g}" for key, value in settings.items() if not 0 < value <= 1]


def whole(settings: Mapping[str, int], low: int, high: int) -> list[str]:
    """One problem for every setting that is no whole number from low to high, both included."""
    return [
        f"corruption.{key} must be a whole number from {low} to {high}, got {value!r}"
        for key, value in settings.items()
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high
    ]


def one_of(key: str, value: str, valid: Sequence[str]) -> list[str]:
    """A problem if the setting is none of the valid words."""
    return [] if value in valid else [f"corruption.{key}: '{value}' is not known{nearest(str(value), valid)}"]


def missing_policy(value: str) -> list[str]:
    """A problem if `missing` is neither `error` nor `clean`."""
    return one_of("missing", value, MISSING_POLICIES)


def refuse(problems: list[str]) -> None:
    """Reports all problems of one corruption together.

    Raises:
        InputError: if there is any problem.
    """
    if problems:
        raise InputError(problems)
