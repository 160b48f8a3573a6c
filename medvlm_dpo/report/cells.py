"""How numbers are written in a table."""

from medvlm_dpo.report.measures import Difference
from medvlm_dpo.statistics.comparison import Comparison
from medvlm_dpo.statistics.intervals import Spread

NOTHING = "-"
LEVEL = 0.05


def percent(spread: Spread | None) -> str:
    """Mean and spread of a share, in percent."""
    return spread_text(spread, scale=100.0, decimals=1)


def nats(spread: Spread | None) -> str:
    """Mean and spread of a signed number of nats."""
    return spread_text(spread, scale=1.0, decimals=2, signed=True)


def spread_text(spread: Spread | None, *, scale: float, decimals: int, signed: bool = False) -> str:
    """`81.2 ± 0.4`; a single value stands alone, since one seed has no spread."""
    if spread is None:
        return NOTHING
    mean = number(spread.mean * scale, decimals, signed=signed)
    return mean if spread.sd is None else f"{mean} ± {spread.sd * scale:.{decimals}f}"


def number(value: float, decimals: int, *, signed: bool = False) -> str:
    """A rounded number; what rounds to 0 has no minus sign."""
    return format(round(value, decimals) + 0.0, f"{'+' if signed else ''}.{decimals}f")


def seeds_text(finished: list[int], planned: list[int]) -> str:
    """Seeds that are in the row, and how many were planned when some are missing."""
    shown = ",".join(map(str, finished)) or "none"
    return shown if len(finished) == len(planned) else f"{shown} of {','.join(map(str, planned))}"


def difference_text(difference: Difference) -> str:
    """The difference in points with its interval and what may be said about it."""
    comparison = difference.comparison
    if comparison is None:
        return difference.why_not
    points = number(100 * comparison.difference, 1, signed=True)
    if comparison.half_width is None:
        return f"{points}  (too few for an interval)"
    limits = (number(100 * (comparison.difference + sign * comparison.half_width), 1, signed=True) for sign in (-1, 1))
    return f"{points} [{', '.join(limits)}]  {verdict(comparison, difference.holm_p)}"


def verdict(comparison: Comparison, holm_p: float | None) -> str:
    """`not distinguishable` when the interval contains 0; `higher` or `lower` only when that survives Holm's correction."""
    if not comparison.excludes_zero:
        words = "not distinguishable"
    else:
        words = "higher" if comparison.difference > 0 else "lower"
        if holm_p is None or holm_p >= LEVEL:
            words += ", uncorrected"
    return f"{words}; 1 seed" if comparison.design == "checkpoints" else words
