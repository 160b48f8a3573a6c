"""What a command can do with composed configurations. A task is one function here (or anywhere) and one yaml in conf/task/."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch.cells import Crew, queue_of, threads_per_cell
from launch.child import call_in_child
from launch.freeze import FrozenSweep, freeze_sweep, refuse_unwritable
from launch.plan import PlannedCell, plan_cells
from launch.state import is_trained, read_yaml
from medvlm_dpo.config.identity import SCIENCE_GROUPS, CheckedCell
from medvlm_dpo.config.instantiate import locate
from medvlm_dpo.errors import InputError, nearest

Configs = list[dict[str, Any]]

_TRAIN_FIRST = "only a trained cell can be evaluated; give the same command with task=train first"


def train(configs: Configs, *, checker: str, precompute: str, runner: str, table: str) -> int:
    """Trains and grades every cell that is not finished, and prints the sweep's table.

    Args:
        configs: one resolved configuration per cell.
        checker: dotted name of the deep check, called in a child: (configurations, manifest path, full) -> CheckedCells.
        precompute: dotted name of the function that computes what cells share, called in a child before they start: (folders, threads).
        runner: dotted name of the function that runs one cell folder, in a child.
        table: dotted name of the function that makes the table: (output folder, sweep name) -> text.

    Returns:
        0, or 1 when a cell failed.

    Raises:
        InputError: with all problems of all cells; nothing was written then.
    """
    refuse_named_cell(configs)
    functions = (checker, precompute, runner, *targets_of(configs))
    checked = _check(configs, checker, functions)
    return _run(configs, plan_cells(configs, checked), runner, table, functions, precompute=precompute)


def evaluate(configs: Configs, *, checker: str, runner: str, table: str) -> int:
    """Answers and grades the chosen evaluation with cells that are finished; trains nothing.

    With `cell=` the cell is that one; without, it is the one the configuration composes. Arguments as in `train`.

    Raises:
        InputError: a cell is not finished, or there is no such cell.
    """
    functions = (checker, runner, *targets_of(configs))
    named = [_named_cell(config) for config in configs]
    asked = [config if cell is None else _with_evaluation(cell, config) for cell, config in zip(named, configs, strict=True)]
    planned = plan_cells(asked, _check(asked, checker, functions), named)
    cells_folder = _output_dir(configs) / "cells"
    untrained = [cell.id for cell in planned if cell.kind == "train" and not is_trained(cells_folder / cell.id)]
    if untrained:
        raise InputError(f"cell {name} is not finished: {_TRAIN_FIRST}" for name in untrained)
    return _run(asked, planned, runner, table, functions)


def call(configs: Configs, *, function: str, settings: dict[str, Any], choices: list[str]) -> int:
    """Calls one function in a child, for work that makes no cell, like rebuilding a built-in model.

    Args:
        configs: exactly one resolved configuration.
        function: dotted name of the function.
        settings: its keyword arguments.
        choices: groups whose chosen name is a further argument, under the name of the group.

    Raises:
        InputError: several configurations, arguments that do not fit the function, or what it raises itself.
    """
    if len(configs) != 1:
        raise InputError(f"task: this task takes one configuration, and the command names {len(configs)}; give it without commas")
    config = configs[0]
    node = {"_target_": function, **settings, **{group: config["choices"][group] for group in choices}}
    result = call_in_child("launch.child.build_checked", ["task.settings", node], (function,), config["import_folders"])
    if isinstance(result, dict):
        for name, value in result.items():
            print(f"{name}: {value}")
    return 0


def tell(configs: Configs, *, function: str, settings: dict[str, Any]) -> int:
    """Prints what a function says about the composed configurations, one or several; makes no cell.

    Args:
        configs: one resolved configuration per cell the command names.
        function: dotted name, called in a child: (configurations, **settings) -> text.
        settings: its keyword arguments.

    Raises:
        InputError: settings that do not fit the function, or what it raises itself.
    """
    refuse_named_cell(configs)
    arguments = [function, configs, settings]
    print(call_in_child("launch.child.tell_checked", arguments, (function,), configs[0]["import_folders"]))
    return 0


def targets_of(value: Any) -> tuple[str, ...]:
    """Every `_target_` of a configuration, each once: the process that cells are forked from imports them for all."""
    if isinstance(value, list):
        found = [name for item in value for name in targets_of(item)]
    elif isinstance(value, dict):
        found = [name for item in value.values() for name in targets_of(item)]
        found += [value["_target_"]] if isinstance(value.get("_target_"), str) else []
    else:
        found = []
    return tuple(dict.fromkeys(found))


def refuse_named_cell(configs: Configs) -> None:
    """`cell=` belongs to task=evaluate: ignoring it would train something else than the user thinks."""
    if any(config["cell"] is not None for config in configs):
        raise InputError("cell: only task=evaluate takes a finished cell; add task=evaluate, or remove cell=...")


def _check(configs: Configs, checker: str, functions: Sequence[str]) -> list[CheckedCell]:
    output_dir = _output_dir(configs)
    refuse_unwritable(output_dir)
    full = any(config["check"] == "full" for config in configs)
    arguments = [configs, str(output_dir / "manifest.json"), full]
    checked: list[CheckedCell] = call_in_child(checker, arguments, functions, configs[0]["import_folders"])
    notes = {note: None for result in checked for note in result.notes}
    for note in notes:
        print(f"note: {note}")
    return checked


def _run(
    configs: Configs, planned: Sequence[PlannedCell], runner: str, table: str, functions: tuple[str, ...], *, precompute: str | None = None
) -> int:
    report: Callable[[Path, str], object] = locate(table)
    output_dir, launcher = _output_dir(configs), configs[0]["launcher"]
    sweep = freeze_sweep(planned, output_dir, _sweep_name(configs), sys.argv)
    _announce(sweep)
    n_parallel = launcher["n_parallel"]
    threads = threads_per_cell(launcher["threads"], n_parallel)
    crew = Crew(runner, functions, n_parallel, threads, tuple(configs[0]["import_folders"]))
    unfinished = [folder for folder in sweep.folders if folder.name not in sweep.finished]
    if precompute is not None:
        _precompute(precompute, unfinished, threads * n_parallel, crew)
    failed = queue_of(unfinished, crew).run()
    shown = report(output_dir, sweep.name)
    if shown is not None:
        print(shown)
    if failed:
        names = ", ".join(folder.name for folder in failed)
        print(f"{len(failed)} of {len(sweep.folders)} cells failed: {names}; the same command tries again")
    return 1 if failed else 0


def _precompute(function: str, unfinished: Sequence[Path], threads: int, crew: Crew) -> None:
    """What the cells share is a matter of time, not of results: where it cannot be had, each cell computes its own.

    Raises:
        InputError: what is stored already cannot be trusted.
    """
    untrained = [str(folder) for folder in unfinished if not is_trained(folder) and read_yaml(folder / "cell.yaml")["kind"] == "train"]
    if not untrained:
        return
    try:
        call_in_child(function, [untrained, threads], crew.functions, crew.import_folders)
    except RuntimeError as error:
        print(f"note: what the cells share could not be computed beforehand, so each computes its own: {error}", flush=True)


def _announce(sweep: FrozenSweep) -> None:
    left = len(sweep.folders) - len(sweep.finished)
    print(f"sweep {sweep.name}: {len(sweep.folders)} cells with their starting models, {len(sweep.finished)} finished, {left} to run")
    for folder in sweep.folders:
        if folder.name in sweep.finished:
            print(f"skipped: finished  {folder.name}")
    for name in sweep.stale:
        print(f"stale: {name} was computed by other sources than the present ones; remove its folder to compute it again")
    sys.stdout.flush()


def _output_dir(configs: Configs) -> Path:
    folders = {config["paths"]["output_dir"] for config in configs}
    if len(folders) > 1:
        raise InputError("paths.output_dir: a command writes into one output folder; give one")
    return Path(folders.pop())


def _sweep_name(configs: Configs) -> str | None:
    names = {config["sweep_name"] for config in configs}
    if len(names) > 1:
        raise InputError("sweep_name: a command makes one sweep; give one name")
    return names.pop()


def _named_cell(config: dict[str, Any]) -> dict[str, Any] | None:
    """The file of the finished cell that `cell=` names by id or folder."""
    if config["cell"] is None:
        return None
    given = Path(config["cell"])
    cells_folder = Path(config["paths"]["output_dir"]) / "cells"
    folder = next((place for place in (cells_folder / given, given) if (place / "cell.yaml").is_file()), None)
    if folder is None:
        known = [place.parent.name for place in cells_folder.glob("*/cell.yaml")]
        hint = nearest(given.name, known) if known else ""
        raise InputError(f"cell: there is no cell '{config['cell']}' in {cells_folder}{hint}")
    if folder.resolve().parent != cells_folder.resolve():
        raise InputError(f"cell: {folder} lies outside {cells_folder}; set paths.output_dir to the output folder it belongs to")
    if not is_trained(folder):
        raise InputError(f"cell {folder.name} is not finished: {_TRAIN_FIRST}")
    return read_yaml(folder / "cell.yaml")


def _with_evaluation(cell: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with the evaluation and the decoding asked for now; of a starting model, the rest as composed."""
    stored = cell["config"]
    choices = {**config["choices"], **stored["choices"], **{group: config["choices"].get(group) for group in ("evaluation", "decoding")}}
    kept = {group: stored[group] for group in (*SCIENCE_GROUPS, "seed") if group in stored}
    return {**config, **kept, "choices": choices}
