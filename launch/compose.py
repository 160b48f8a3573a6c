"""From a command line to plain, resolved configurations: one dictionary per cell, with nothing of Hydra left in them."""

import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch.mistakes import MISTAKES, missing_value, sentences
from medvlm_dpo.config.catalogue import conf_folder
from medvlm_dpo.config.identity import PATH_KEYS
from medvlm_dpo.config.schema import CHECKS, SINGLE_VALUES, register
from medvlm_dpo.config.shared import unread_shared_problems
from medvlm_dpo.errors import InputError, nearest

MAX_SEED = 2**32 - 1  # the largest seed numpy takes


def compose_cells(arguments: list[str]) -> list[dict[str, Any]]:
    """Composes every cell a command line names.

    Args:
        arguments: the command line without the program's name, in Hydra's grammar.

    Returns:
        One resolved configuration per cell; empty when the command only asked for help or for a look at the configuration.

    Raises:
        InputError: with all problems of all cells.
    """
    composed: list[DictConfig] = []

    def keep(config: DictConfig) -> None:
        composed.append(config)

    register()
    with _raw_errors(), _command_line(arguments):
        try:
            hydra.main(config_path=str(conf_folder()), config_name="config", version_base="1.3")(keep)()
        except MISTAKES as error:
            raise InputError(sentences(error)) from error
        except (ValueError, TypeError) as error:
            if not _is_about_the_command(error):
                raise
            raise InputError(f"{error}; `--help` lists what a command can say") from error
    folders = import_folders(arguments)
    cells = [_plain(config, folders) for config in composed]
    problems = list(dict.fromkeys(problem for cell in cells for problem in _value_problems(cell)))
    if problems:
        raise InputError(problems)
    return cells


def import_folders(arguments: list[str]) -> list[str]:
    """Where a user's own python files may lie: the current folder, and the folder given by --config-dir and its parent."""
    known, _ = _parsed(arguments)
    folders = [Path.cwd()]
    if known.config_dir:
        given = Path(known.config_dir).resolve()
        folders += [given, given.parent]
    return list(dict.fromkeys(map(str, folders)))


@contextmanager
def _raw_errors() -> Iterator[None]:
    """Hydra prints its exceptions and exits with 1; with this variable it lets them through."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR") if before is None else os.environ.update(HYDRA_FULL_ERROR=before)


@contextmanager
def _command_line(arguments: list[str]) -> Iterator[None]:
    """Hydra reads sys.argv. A call without -m becomes a sweep of one, and every dotted value an axis of one value.

    Hydra would try plain values on the first configuration, whose groups are the defaults: `-m loss=simpo,cpo
    loss.gamma_beta_ratio=0.3` would be refused because the default loss has no such key. Axes are tried cell by cell.
    """
    known, overrides = _parsed(arguments)
    options = _without(arguments, overrides)
    if not any((known.cfg, known.info, known.help, known.hydra_help, known.shell_completion)):
        overrides = [_as_axis(item, grid=known.multirun) for item in overrides]
        options += [] if known.multirun else ["--multirun"]
    before, sys.argv = sys.argv, [sys.argv[0], *options, *overrides]
    try:
        yield
    finally:
        sys.argv = before


def _parsed(arguments: list[str]) -> tuple[Namespace, list[str]]:
    """Options and overrides, in whatever order they stand; Hydra itself wants all overrides in one run."""
    parser = get_args_parser()
    known, rest = parser.parse_known_args(arguments)
    unknown = [item for item in rest if item.startswith("-")]
    if unknown:
        valid = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
        raise InputError(f"{item}: there is no such option{nearest(item, valid)}" for item in unknown)
    named = [*known.overrides, *rest]
    return known, sorted(named, key=arguments.index)


def _without(arguments: list[str], overrides: list[str]) -> list[str]:
    left = list(arguments)
    for override in overrides:
        left.remove(override)
    return left


def _as_axis(override: str, *, grid: bool) -> str:
    try:
        parsed = OverridesParser.create().parse_overrides([override])[0]
    except HydraException:
        return override  # Hydra says what is wrong with it
    key, _, value = override.partition("=")
    if parsed.is_sweep_override():
        if not grid:
            raise InputError(f"{override}: several values make a grid; add -m, or quote a value that holds a comma: {key}=\\'...\\'")
        return override
    if ("." not in key and key not in SINGLE_VALUES) or not value or key.lstrip("+").startswith(("hydra.", "~")):
        return override
    axis = f"{key}=choice({value})"
    try:
        OverridesParser.create().parse_overrides([axis])
    except HydraException:
        return override
    return axis


def _is_about_the_command(error: Exception) -> bool:
    """Hydra refuses some command lines by plain ValueErrors from its own depths; ours and other bugs keep their traceback."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and str(frames[-1][0].f_globals.get("__name__")).startswith(("hydra._internal.", "hydra.core."))


def _plain(config: DictConfig, folders: list[str]) -> dict[str, Any]:
    if "hydra" not in config:
        raise InputError("hydra/launcher: this launcher is not ours; choose local")
    machine = config.hydra
    try:
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        missing = sorted(_missing(OmegaConf.to_container(own, resolve=False)))
        if missing:
            raise InputError(missing_value(key) for key in missing)
        resolved = OmegaConf.to_container(own, resolve=True)
        unread = unread_shared_problems(own, list(machine.overrides.task))
    except OmegaConfBaseException as error:
        raise InputError(sentences(error)) from error
    if unread:
        raise InputError(unread)
    if not isinstance(resolved, dict):
        raise TypeError("the root of a configuration is a mapping")
    plain = {str(key): _absolute_paths(value) for key, value in resolved.items()}
    plain["paths"] = {key: _absolute(value) for key, value in plain["paths"].items()}
    choices = {str(key): value for key, value in machine.runtime.choices.items() if not str(key).startswith("hydra/")}
    launcher = {"n_parallel": machine.launcher.n_parallel, "threads": machine.launcher.threads}
    overrides = list(machine.overrides.task)
    return {**plain, "choices": choices, "launcher": launcher, "overrides": overrides, "import_folders": folders}


def _missing(value: Any, place: str = "") -> Iterator[str]:
    """Keys that must be given, found before anything is resolved: what refers to them would only repeat the complaint."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _missing(item, f"{place}.{key}" if place else str(key))
    elif value == "???":
        yield place


def _absolute_paths(value: Any) -> Any:
    """A frozen cell runs from any folder, so its paths must not depend on the present one."""
    if isinstance(value, dict):
        return {key: _absolute(item) if key in PATH_KEYS else _absolute_paths(item) for key, item in value.items()}
    return [_absolute_paths(item) for item in value] if isinstance(value, list) else value


def _absolute(value: Any) -> Any:
    if not isinstance(value, str) or value.startswith("builtin:"):
        return value
    return os.path.normpath(Path.cwd() / Path(value).expanduser())


def _value_problems(cell: dict[str, Any]) -> list[str]:
    problems: list[str] = []
    if cell["check"] not in CHECKS:
        problems.append(f"check: '{cell['check']}' is neither fast nor full{nearest(cell['check'], CHECKS)}")
    if not 0 <= cell["seed"] <= MAX_SEED:
        problems.append(f"seed: expects a whole number from 0 to {MAX_SEED}, got {cell['seed']}")
    name, launcher = cell["sweep_name"], cell["launcher"]
    if name is not None and (not name or name.startswith((".", "-")) or not all(letter.isalnum() or letter in "._-" for letter in name)):
        problems.append(f"sweep_name: '{name}' names a folder; use letters, digits, '.', '_' and '-', and begin with neither '.' nor '-'")
    if not isinstance(launcher["n_parallel"], int) or launcher["n_parallel"] < 1:
        problems.append(f"hydra.launcher.n_parallel: expects a whole number from 1, got {launcher['n_parallel']!r}")
    if launcher["threads"] != "auto" and (not isinstance(launcher["threads"], int) or launcher["threads"] < 1):
        problems.append(f"hydra.launcher.threads: expects a whole number from 1, or auto, got {launcher['threads']!r}")
    return problems
