"""What a person at the terminal sees."""

import sys
from datetime import UTC, datetime
from pathlib import Path


class Follower:
    """Shows what a cell writes into its log while it runs: progress bars live in the terminal and in the log alike.

    Args:
        log: the file, which may not exist yet.
        show: False for several cells at a time, whose lines would mix; a pipe never gets progress bars.
    """

    def __init__(self, log: Path, *, show: bool) -> None:
        self._log, self._show = log, show and sys.stderr.isatty()
        self._position = log.stat().st_size if log.is_file() else 0

    def show_new(self) -> None:
        """Copies what was written since the last call."""
        if not self._show or not self._log.is_file():
            return
        with self._log.open("rb") as stream:
            stream.seek(self._position)
            new = stream.read()
        self._position += len(new)
        sys.stderr.buffer.write(new)
        sys.stderr.flush()


def now_words() -> str:
    """The present time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S+00:00")


def duration_words(seconds: float) -> str:
    """A duration a person can read: `41 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
