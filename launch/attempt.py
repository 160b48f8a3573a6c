"""One attempt at one cell, in a process of its own: claim the folder, write to its log, run it, say how it ended."""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from launch.child import add_import_folders
from launch.claim import claim
from launch.state import is_finished
from medvlm_dpo.config.instantiate import locate
from medvlm_dpo.errors import InputError, TrainingStoppedError
from medvlm_dpo.results.status import mark_ended, mark_running

FINISHED, FAILED, BUSY, INTERRUPTED = 0, 1, 75, 130


def attempt_cell(folder: str, runner: str, threads: int, folders: Sequence[str]) -> None:
    """Runs a frozen cell and ends the process: 0 finished, 1 failed, 75 another process works on it, 130 interrupted.

    Args:
        folder: the cell's folder.
        runner: dotted name of a function of the folder that returns an exit code.
        threads: CPU threads, given to the cell as OMP_NUM_THREADS.
        folders: where a user's own modules may lie.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    add_import_folders(folders)
    cell = Path(folder)
    with claim(cell) as granted:
        if not granted:
            sys.exit(BUSY)
        if is_finished(cell):  # by another command, a moment ago
            sys.exit(FINISHED)
        _write_to(cell / "log.txt")
        code = _run(cell, runner)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # whatever a library left behind (threads, queues) must not keep a finished cell alive


def _run(cell: Path, runner: str) -> int:
    try:
        mark_running(cell)
        code = locate(runner)(cell)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (InputError, TrainingStoppedError) as error:  # these explain themselves
        print(f"error: {error}", file=sys.stderr)
        return _end(cell, FAILED, str(error))
    except BaseException as error:
        traceback.print_exc()
        return _end(cell, FAILED, f"{type(error).__name__}: {error}")
    return _end(cell, int(code or 0), "")


def _end(cell: Path, code: int, message: str) -> int:
    if code == INTERRUPTED:
        mark_ended(cell, "interrupted", "interrupted; the same command resumes")
    elif code == FINISHED and is_finished(cell):
        mark_ended(cell, "finished")
    else:
        missing = "ended without a result or without all grades" if code == FINISHED else f"ended with exit code {code}"
        mark_ended(cell, "failed", message or missing)
        return FAILED
    return code


def _write_to(log: Path) -> None:
    """From here on everything the process prints, its libraries' C code included, goes to the cell's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
