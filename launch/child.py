"""Work in child processes, forked by a helper that has imported torch once: the driver itself never does."""

import ctypes
import inspect
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from medvlm_dpo.config.instantiate import call_target, check_targets, locate
from medvlm_dpo.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def fork_server(functions: Sequence[str]) -> ForkServerContext:
    """The context whose children start in milliseconds.

    Args:
        functions: dotted names of what children will call; their modules are imported once, by the helper process.
    """
    _lead_children_to(ROOT)
    # Threads that wait for each other sleep instead of spinning: on a machine that others use too, spinning was 4 to 6 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    context = multiprocessing.get_context("forkserver")
    modules = dict.fromkeys(name.rpartition(".")[0] for name in functions)
    context.set_forkserver_preload(["launch.preload", "launch.child", *(module for module in modules if module.startswith("medvlm_dpo."))])
    return context


def call_in_child(function: str, arguments: Sequence[Any], functions: Sequence[str], folders: Sequence[str]) -> Any:
    """Calls a function in a child process and returns its result.

    Args:
        function: dotted name.
        arguments: plain values.
        functions: dotted names of everything this command will call in children.
        folders: where a user's own modules may lie.

    Raises:
        InputError: the function does not exist, or it raised one.
        RuntimeError: the child died, or the function has a bug; with the child's traceback.
    """
    context = fork_server(functions)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, tuple(arguments), list(folders)))
    process.start()
    sender.close()
    try:
        kind, value = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function}: its process ended with exit code {process.exitcode} and no answer (out of memory?)") from None
    except KeyboardInterrupt:
        process.kill()  # it reads, or writes files that appear whole or not at all
        raise
    process.join()
    if kind == "problems":
        raise InputError(value)
    if kind == "bug":
        raise RuntimeError(f"{function} failed:\n{value}")
    return value


def build_checked(name: str, node: Mapping[str, Any]) -> Any:
    """Checks a node's keys against its target's signature, then builds it.

    Args:
        name: of the node, for messages.
        node: with `_target_`.

    Raises:
        InputError: with all keys that do not fit.
    """
    problems = check_targets({name: node})
    if problems:
        raise InputError(problems)
    return call_target(node)


def tell_checked(function: str, configs: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """Compares the settings with the function's signature, then calls it with the configurations.

    Args:
        function: dotted name; its first argument is the configurations, its result a text.
        configs: resolved configurations.
        settings: its further arguments, by name.

    Raises:
        InputError: with all settings that do not fit, or what the function raises itself.
    """
    told = locate(function)
    configs_name = list(inspect.signature(told).parameters)[:1]
    problems = check_targets({"task.settings": {"_target_": function, **settings}}, served=configs_name)
    if problems:
        raise InputError(problems)
    return str(told(configs, **settings))


def add_import_folders(folders: Sequence[str]) -> None:
    """Lets a user's own modules be found, after everything installed, so that none of them can hide a library."""
    sys.path.extend(folder for folder in folders if folder not in sys.path)


def _answer(sender: Connection, function: str, arguments: tuple[Any, ...], folders: list[str]) -> None:
    _die_with_parent()
    add_import_folders(folders)
    try:
        sender.send(("value", locate(function)(*arguments)))
    except InputError as error:
        sender.send(("problems", error.problems))
    except Exception:
        sender.send(("bug", traceback.format_exc()))


def _die_with_parent() -> None:
    """Nobody waits for the answer of a driver that was killed: its helper process ends then, and this one with it."""
    parent = os.getppid()
    with suppress(OSError, AttributeError):  # Linux only: https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended just before
        os._exit(1)


def _lead_children_to(root: Path) -> None:
    """Python before 3.13 does not tell the helper process where the driver's modules are, and it would preload nothing.

    https://github.com/python/cpython/issues/126631
    """
    if (root / "run.py").is_file():  # in a clone; an installed package is found anyway
        known = os.environ.get("PYTHONPATH", "")
        if str(root) not in known.split(os.pathsep):
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), known)))
