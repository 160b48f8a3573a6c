"""Runs frozen cells as local processes, `n_parallel` at a time, and tells the terminal what happens."""

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from launch import attempt
from launch.child import fork_server
from launch.claim import claim, is_claimed
from launch.state import is_finished, last_lines
from launch.terminal import Follower, duration_words, now_words
from medvlm_dpo.results.status import mark_ended, read_status

POLL_SECONDS = 0.2
BUSY_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Crew:
    """How cells are run.

    Args:
        runner: dotted name of the function that runs one cell folder.
        functions: dotted names of everything this command calls in children.
        n_parallel: cells at a time.
        threads: CPU threads of one cell.
        import_folders: where a user's own modules may lie.
    """

    runner: str
    functions: tuple[str, ...]
    n_parallel: int
    threads: int
    import_folders: tuple[str, ...]


@dataclass
class _Running:
    folder: Path
    process: ForkServerProcess
    began: float
    follower: Follower


@dataclass
class Queue:
    """Cells that wait, run and have ended.

    Args:
        crew: how cells are run.
        waiting: folders of unfinished cells, in order.
    """

    crew: Crew
    waiting: deque[Path]
    failed: list[Path] = field(default_factory=list[Path])
    _total: int = 0
    _started: int = 0
    _seconds: list[float] = field(default_factory=list[float])
    _running: list[_Running] = field(default_factory=list[_Running])
    _announced_busy: set[Path] = field(default_factory=set[Path])

    def run(self) -> list[Path]:
        """Runs every cell that can be run; a failed one does not stop the others.

        Returns:
            Folders of the cells that failed.

        Raises:
            KeyboardInterrupt: after the running cells have stopped.
        """
        self._total = len(self.waiting)
        try:
            while self.waiting or self._running:
                self._start_some()
                self._wait_a_moment()
        except KeyboardInterrupt:
            self._stop_all()
            raise
        return self.failed

    def _start_some(self) -> None:
        for _ in range(len(self.waiting)):
            if len(self._running) >= self.crew.n_parallel:
                return
            folder = self.waiting.popleft()
            if is_claimed(folder):
                self._postpone(folder)
            elif is_finished(folder):
                print(f"skipped: finished  {folder.name}", flush=True)
            else:
                self._start(folder)

    def _start(self, folder: Path) -> None:
        self._started += folder not in self._announced_busy
        _say(f"{folder.name} starts ({self._started} of {self._total}{self._remaining_words()})")
        follower = Follower(folder / "log.txt", show=self.crew.n_parallel == 1)
        arguments = (str(folder), self.crew.runner, self.crew.threads, self.crew.import_folders)
        process = fork_server(self.crew.functions).Process(target=attempt.attempt_cell, args=arguments)
        process.start()
        self._running.append(_Running(folder, process, time.monotonic(), follower))

    def _postpone(self, folder: Path) -> None:
        """Another command works on this cell: wait for it, and do what it leaves undone."""
        if folder not in self._announced_busy:
            self._announced_busy.add(folder)
            status = read_status(folder)
            _say(f"{folder.name} is being run by another command (process {status.pid} on {status.host}); waiting for it")
        self.waiting.append(folder)

    def _wait_a_moment(self) -> None:
        if not self._running:
            if self.waiting:
                time.sleep(BUSY_POLL_SECONDS)
            return
        connection.wait([item.process.sentinel for item in self._running], timeout=POLL_SECONDS)
        for item in list(self._running):
            item.follower.show_new()
            if not item.process.is_alive():
                item.process.join()
                self._running.remove(item)
                self._account(item)

    def _account(self, item: _Running) -> None:
        item.follower.show_new()
        code, seconds = item.process.exitcode, time.monotonic() - item.began
        if code == attempt.BUSY:
            self._postpone(item.folder)
        elif code == attempt.FINISHED and is_finished(item.folder):
            self._seconds.append(seconds)
            _say(f"{item.folder.name} finished in {duration_words(seconds)}{self._remaining_words()}")
        else:
            self._fail(item.folder, code, seconds)

    def _fail(self, folder: Path, code: int | None, seconds: float) -> None:
        self.failed.append(folder)
        if code not in (attempt.FAILED, attempt.INTERRUPTED):  # it had no time to say so itself
            with claim(folder) as granted:
                if granted:
                    mark_ended(folder, "failed", _death_words(code))
        _say(f"{folder.name} FAILED after {duration_words(seconds)}: {read_status(folder).message}")
        for line in last_lines(folder / "log.txt"):
            print(f"    {line}")
        print(f"    (whole log: {folder / 'log.txt'})", flush=True)

    def _remaining_words(self) -> str:
        left = len(self.waiting) + len(self._running)
        if not self._seconds or not left:
            return ""
        mean = sum(self._seconds) / len(self._seconds)
        return f"; about {duration_words(mean * left / self.crew.n_parallel)} left"

    def _stop_all(self) -> None:
        """Asks every running cell once to stop at its next safe point; a second interrupt kills."""
        for item in self._running:
            _signal(item.process, signal.SIGINT)
        if self._running:
            print(f"stopping {len(self._running)} running cell(s); once more to kill", file=sys.stderr, flush=True)
        try:
            for item in self._running:
                item.process.join()
        except KeyboardInterrupt:
            for item in self._running:
                _signal(item.process, signal.SIGKILL)
                item.process.join()
        for item in self._running:
            if item.process.exitcode not in (attempt.FINISHED, attempt.INTERRUPTED, attempt.FAILED):
                mark_ended(item.folder, "interrupted", "interrupted and killed; the same command resumes")


def threads_per_cell(threads: int | str, n_parallel: int) -> int:
    """CPU threads of one cell: as configured, else the cores SLURM gives, else an equal share of the cores of this process."""
    if isinstance(threads, int):
        return threads
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(given) if given.isdigit() else max(1, len(os.sched_getaffinity(0)) // n_parallel)


def queue_of(folders: Sequence[Path], crew: Crew) -> Queue:
    """A queue of unfinished cells."""
    return Queue(crew, deque(folders))


def _signal(process: ForkServerProcess, number: signal.Signals) -> None:
    if process.pid is not None and process.is_alive():
        os.kill(process.pid, number)


def _death_words(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    return "ended without a result" if code == 0 else f"ended with exit code {code}"


def _say(line: str) -> None:
    print(f"[{now_words()}] {line}", flush=True)
