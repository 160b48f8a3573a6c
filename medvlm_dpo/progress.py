"""A line on the terminal that renews itself while something long goes on."""

import sys
import time
from datetime import timedelta

REFRESH_S = 1.0
BAR_WIDTH = 30


class ProgressLine:
    """Done, total, and the time that is left, at most once a second and always at the end.

    Args:
        done: what was there before: it counts as done, not towards the rate.
        total: of everything.
    """

    def __init__(self, *, done: int, total: int) -> None:
        self._first, self._total = done, total
        self._started = self._shown = time.monotonic()

    def show(self, done: int, words: str = "") -> None:
        """Renews the line.

        Args:
            done: of the total.
            words: what to say between the count and the time that is left.
        """
        now = time.monotonic()
        if done < self._total and now - self._shown < REFRESH_S:
            return
        self._shown = now
        remaining = timedelta(seconds=round((self._total - done) * (now - self._started) / max(1, done - self._first)))
        bar = "#" * (BAR_WIDTH * done // max(1, self._total))
        sys.stderr.write(f"\r[{bar:.<{BAR_WIDTH}}] {done}/{self._total}  {words}{remaining} left" + ("\n" if done == self._total else ""))
        sys.stderr.flush()

    def restart(self) -> None:
        """Starts the clock now."""
        self._started = self._shown = time.monotonic()
