"""The command: compose, hand over to the task, turn what happened into an exit code. `run.py` and `medvlm-dpo` call it."""

import signal
import sys
from types import FrameType

from launch.child import add_import_folders
from launch.compose import compose_cells
from medvlm_dpo.config.instantiate import call_target, check_targets
from medvlm_dpo.errors import InputError

DONE, CELL_FAILED, INPUT_WRONG, INTERRUPTED = 0, 1, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Runs one command line.

    Args:
        arguments: the command line without the program's name; None takes the process's own.

    Returns:
        0 done (also when everything was finished before), 1 a cell failed, 2 input or command wrong, 130 interrupted.
        Whatever else goes wrong is a bug and keeps its traceback.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except InputError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        count = len(error.problems)
        print(f"nothing was started: {count} problem{'s' if count > 1 else ''}; `--help` shows how the command is used", file=sys.stderr)
        return INPUT_WRONG
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return INTERRUPTED


def _run(arguments: list[str]) -> int:
    cells = compose_cells(arguments)
    if not cells:
        return DONE
    task = cells[0]["task"]
    if any(cell["task"] != task for cell in cells):
        raise InputError("task: a command has one task; give one command per task")
    add_import_folders(cells[0]["import_folders"])
    problems = check_targets({"task": task})
    if problems:
        raise InputError(problems)
    return int(call_target(task)(cells))


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signature signal.signal asks for
    """A closed terminal and a polite kill end a command as Ctrl-C does."""
    raise KeyboardInterrupt
