"""From checked configurations to what has to exist: cells, starting models and their evaluations, each once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from medvlm_dpo.config.identity import CheckedCell, cell_identity, evaluation_identity, start_identity
from medvlm_dpo.errors import InputError

START_GROUPS = ("task", "model", "evaluation", "decoding", "trainer", "cache", "logger", "paths", "import_folders", "launcher", "seed")


@dataclass(frozen=True)
class PlannedEvaluation:
    """One evaluation of a cell.

    Args:
        id: name of its folder.
        evaluation, decoding: resolved nodes.
        content: content hash of the questions.
        graders: version by grader.
    """

    id: str
    evaluation: Mapping[str, Any]
    decoding: Mapping[str, Any]
    content: str
    graders: Mapping[str, str]


@dataclass(frozen=True)
class PlannedCell:
    """One folder under `cells/`.

    Args:
        id: its name.
        kind: `train`, or `start` for the untouched starting model.
        hash: its whole identity.
        config: resolved configuration.
        content: content hashes that stand in place of paths.
        evaluations: by id.
    """

    id: str
    kind: Literal["train", "start"]
    hash: str
    config: Mapping[str, Any]
    content: Mapping[str, str]
    evaluations: Mapping[str, PlannedEvaluation] = field(default_factory=dict[str, PlannedEvaluation])


def plan_cells(
    configs: Sequence[Mapping[str, Any]], checked: Sequence[CheckedCell], stored: Sequence[Mapping[str, Any] | None] | None = None
) -> tuple[PlannedCell, ...]:
    """Cells of a grid, starting models first. Configurations that differ in their evaluation only are one cell.

    Args:
        configs: resolved configurations.
        checked: what the deep check found for each.
        stored: for each configuration, the content of the cell.yaml it evaluates again, whose identity it keeps; or None.

    Raises:
        InputError: with all problems of all cells, each naming the cells it concerns unless it concerns all.
    """
    _refuse_problems(configs, checked)
    planned: dict[str, PlannedCell] = {}
    for config, result, known in zip(configs, checked, stored or [None] * len(configs), strict=True):
        evaluation = _evaluation(config, result)
        start = start_identity(config, result.content)
        _merge(planned, PlannedCell(start.name, "start", start.hash, _start_config(config), {"model": result.content["model"]}), evaluation)
        if known is None:
            read = {**config, **dict.fromkeys(result.unread)}  # what the loss does not read is not part of the cell
            cell = cell_identity(read, result.content)
            _merge(planned, PlannedCell(cell.name, "train", cell.hash, read, result.content), evaluation)
        else:
            _merge(planned, PlannedCell(known["id"], known["kind"], known["hash"], known["config"], known["content"]), evaluation)
    return tuple(sorted(planned.values(), key=lambda cell: cell.kind != "start"))


def _evaluation(config: Mapping[str, Any], result: CheckedCell) -> PlannedEvaluation:
    name = evaluation_identity(config["evaluation"], config["decoding"], result.evaluation_content)
    return PlannedEvaluation(name, config["evaluation"], config["decoding"], result.evaluation_content, result.graders)


def _merge(planned: dict[str, PlannedCell], cell: PlannedCell, evaluation: PlannedEvaluation) -> None:
    known = planned.get(cell.id, cell)
    planned[cell.id] = replace(known, evaluations={**known.evaluations, evaluation.id: evaluation})


def _start_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A starting model has no loss, data or adapter, and its file should not name those of the cell it was first needed by."""
    choices = {group: config["choices"][group] for group in ("model", "evaluation", "decoding") if group in config["choices"]}
    return {**{key: config[key] for key in START_GROUPS if key in config}, "choices": choices}


def _refuse_problems(configs: Sequence[Mapping[str, Any]], checked: Sequence[CheckedCell]) -> None:
    cells_by_problem: dict[str, list[str]] = {}
    for config, result in zip(configs, checked, strict=True):
        for problem in dict.fromkeys(result.problems):
            cells_by_problem.setdefault(problem, []).append(" ".join(config["overrides"]) or "the defaults")
    if cells_by_problem:
        raise InputError(problem + _whose(cells, len(configs)) for problem, cells in cells_by_problem.items())


def _whose(cells: list[str], num_configs: int) -> str:
    if len(cells) == num_configs:
        return ""
    return f" [{cells[0]}]" if len(cells) == 1 else f" [{len(cells)} of {num_configs} cells, first: {cells[0]}]"
