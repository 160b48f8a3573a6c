"""Reads what cells wrote. Any number of readers, at any time: a half-finished sweep is as readable as a finished one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from medvlm_dpo.errors import InputError, nearest
from medvlm_dpo.results import predictions
from medvlm_dpo.results.status import RESULT_FILE, Status, checked, read_document, read_status


@dataclass(frozen=True)
class EvaluationRecord:
    """One graded evaluation of a cell.

    Args:
        id: folder name, `<evaluation>-<hash8>`; equal ids mean equal questions and decoding.
        folder: where `predictions.parquet` lies.
        scores: content of `scores.json`.
    """

    id: str
    folder: Path
    scores: Mapping[str, Any]

    @property
    def predictions(self) -> Path:
        """The answers with their grades."""
        return self.folder / predictions.FILE_NAME

    def value(self, grader: str, metric: str, error_type: str | None = None) -> float | None:
        """One average of `scores.json`, over everything or over one error type; None where there is none."""
        grades = self.scores["graders"].get(grader, {})
        averages = grades.get("overall", {}) if error_type is None else grades.get("by_error_type", {}).get(error_type, {})
        return averages.get(metric, {}).get("value")


@dataclass(frozen=True)
class CellRecord:
    """What is known of one cell.

    Args:
        id, folder: its name and where it lies.
        kind: `train` or `start`.
        status: how far it is; state `missing` for a folder that does not exist.
        cell: content of `cell.yaml`; empty when missing.
        result: content of `result.json`; empty before the training is complete.
        evaluations: the graded ones, by id.
    """

    id: str
    folder: Path
    kind: str
    status: Status
    cell: Mapping[str, Any] = field(default_factory=dict[str, Any])
    result: Mapping[str, Any] = field(default_factory=dict[str, Any])
    evaluations: Mapping[str, EvaluationRecord] = field(default_factory=dict[str, EvaluationRecord])

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration."""
        return self.cell.get("config", {})

    @property
    def choices(self) -> Mapping[str, str]:
        """The names chosen per group, e.g. `loss: dpo`."""
        return self.config.get("choices", {})

    def metric(self, name: str) -> float | None:
        """One number of the training, e.g. `validation/preference_accuracy`; None where it was not measured."""
        return self.result.get("metrics", {}).get(name)

    def pair_metric(self, error_type: str, name: str) -> float | None:
        """One diagnostic of the validation pairs of one error type, e.g. `preference_gain`; None where it was not measured."""
        return self.result.get("validation_by_error_type", {}).get(error_type, {}).get(name)

    @property
    def pair_error_types(self) -> frozenset[str]:
        """Error types among the validation pairs."""
        return frozenset(self.result.get("validation_by_error_type", {}))


@dataclass(frozen=True)
class SweepRecord:
    """One sweep with everything it lists.

    Args:
        name: its name.
        output_dir: the output folder.
        document: content of `sweep.json`.
        cells: trained cells in the order of the sweep, unfinished ones included.
        starts: cells of untouched starting models.
    """

    name: str
    output_dir: Path
    document: Mapping[str, Any]
    cells: tuple[CellRecord, ...]
    starts: tuple[CellRecord, ...]

    @property
    def folder(self) -> Path:
        """Where `sweep.json` lies."""
        return self.output_dir / "sweeps" / self.name

    @property
    def evaluation_ids(self) -> tuple[str, ...]:
        """Evaluations of this sweep, in its order; a cell shared with another sweep may hold more."""
        return tuple(self.document.get("evaluations", ()))


def read_sweep(output_dir: Path, name: str) -> SweepRecord:
    """Reads one sweep and its cells.

    Args:
        output_dir: the folder that holds `sweeps/` and `cells/`.
        name: name of the sweep.

    Raises:
        InputError: no such sweep, or an unreadable file; names the file.
    """
    path = output_dir / "sweeps" / name / "sweep.json"
    if not path.exists():
        known = sorted(other.parent.name for other in output_dir.glob("sweeps/*/sweep.json"))
        raise InputError(f"{path} does not exist: there is no sweep {name} in {output_dir}{nearest(name, known)}")
    document = read_document(path)
    cells = tuple(read_cell(output_dir / "cells" / cell_id) for cell_id in document.get("cells", ()))
    starts = tuple(read_cell(output_dir / "cells" / cell_id) for cell_id in document.get("starts", ()))
    return SweepRecord(name, output_dir, document, cells, starts)


def read_cell(folder: Path) -> CellRecord:
    """Reads one cell folder, whatever its state.

    Raises:
        InputError: a file that is there cannot be read; names it.
    """
    if not (folder / "cell.yaml").exists():
        return CellRecord(folder.name, folder, "train", Status(state="missing"))
    cell = _read_yaml(folder / "cell.yaml")
    graded = map(_read_evaluation, sorted(folder.glob("evaluations/*/scores.json")))
    return CellRecord(
        id=folder.name,
        folder=folder,
        kind=cell.get("kind", "train"),
        status=read_status(folder),
        cell=cell,
        result=read_document(folder / RESULT_FILE, required=False),
        evaluations={record.id: record for record in graded},
    )


def _read_evaluation(path: Path) -> EvaluationRecord:
    scores = read_document(path)
    if not isinstance(scores.get("graders"), dict):
        raise InputError(f"{path} lists no graders; delete it and run the same command: the stored answers are graded again.")
    return EvaluationRecord(path.parent.name, path.parent, scores)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as yaml ({error}); restore it, or delete its folder and run the same command.") from error
    return checked(document, path)
