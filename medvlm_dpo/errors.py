"""What a user can get wrong: one exception that carries every problem found, so that all are shown at once."""

import difflib
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """Bad input or configuration. The command prints the problems without a traceback and exits with 2.

    Args:
        problems: one complete sentence each: what failed, where (file, line, record, key), what was expected, what to do.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


def nearest(name: str, valid: Sequence[str]) -> str:
    """The hint that follows an unknown name: `; did you mean beta?`, or the whole list when nothing is near."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; choose from {', '.join(sorted(valid))}" if valid else ""


class TrainingStoppedError(RuntimeError):
    """A run that cannot be trusted: it stops with an explanation instead of a wrong result. The cell fails, exit 1."""
