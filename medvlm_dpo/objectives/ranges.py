"""Range checks of settings. A message names `loss.<key>`; the host puts the true place of a term in front of the key."""

import math
from collections.abc import Mapping

from medvlm_dpo.errors import InputError


def positive(settings: Mapping[str, float]) -> list[str]:
    """One problem for every setting that is not a finite number above 0 (a NaN is neither)."""
    return [f"loss.{key} must be {range_words('> 0', value)}, got {value:g}" for key, value in settings.items() if not 0 < value < math.inf]


def positive_or_unlimited(settings: Mapping[str, float]) -> list[str]:
    """One problem for every setting that is not a number above 0; infinity means no limit."""
    return [f"loss.{key} must be > 0 (inf for no limit), got {value:g}" for key, value in settings.items() if not value > 0]


def not_negative(settings: Mapping[str, float]) -> list[str]:
    """One problem for every setting that is not a finite number of at least 0."""
    return [
        f"loss.{key} must be {range_words('>= 0', value)}, got {value:g}" for key, value in settings.items() if not 0 <= value < math.inf
    ]


def at_most(settings: Mapping[str, float], highest: float) -> list[str]:
    """One problem for every finite setting above the highest number allowed; add it to one of the checks above."""
    return [f"loss.{key} must be <= {highest:g}, got {value:g}" for key, value in settings.items() if highest < value < math.inf]


def below(settings: Mapping[str, float], limit: float) -> list[str]:
    """One problem for every setting that is not a finite number below the limit."""
    allowed = f"< {limit:g}"
    return [
        f"loss.{key} must be {range_words(allowed, value)}, got {value:g}"
        for key, value in settings.items()
        if not -math.inf < value < limit
    ]


def range_words(allowed: str, value: float) -> str:
    """What a setting must be, told to somebody who gave `value`: that it must be finite is said where it is not."""
    return allowed if math.isfinite(value) else f"a finite number {allowed}"


def refuse(problems: list[str]) -> None:
    """Reports all range problems of one function together.

    Raises:
        InputError: if there is any problem.
    """
    if problems:
        raise InputError(problems)
