"""Cells and sweeps on disk. A folder appears under its final name complete, by one rename, or not at all."""

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from launch.claim import is_claimed
from launch.plan import PlannedCell, PlannedEvaluation
from launch.state import is_finished, is_trained, read_yaml
from medvlm_dpo.config.identity import science_of
from medvlm_dpo.errors import InputError
from medvlm_dpo.files import SCHEMA_VERSION, sha256_of_file, sha256_of_json, utc_now, write_bytes_atomic, write_json_atomic
from medvlm_dpo.results.status import Status, read_document, write_status

PACKAGE = Path(__file__).resolve().parent.parent / "medvlm_dpo"


@dataclass(frozen=True)
class FrozenSweep:
    """A sweep on disk.

    Args:
        name: its folder under `sweeps/`.
        output_dir: the output folder.
        folders: of its cells and starting models, in the order they run.
        finished: names of those that were finished before.
        stale: names of finished ones that other sources computed.
    """

    name: str
    output_dir: Path
    folders: tuple[Path, ...]
    finished: frozenset[str]
    stale: tuple[str, ...]


def refuse_unwritable(output_dir: Path) -> None:
    """Says early, before anything is read, that an output folder cannot be written.

    Raises:
        InputError: it is no folder, or its nearest existing parent does not let us write.
    """
    existing = next(folder for folder in (output_dir, *output_dir.parents) if folder.exists())
    if not existing.is_dir():
        raise InputError(f"paths.output_dir: {existing} is a file, so {output_dir} cannot be a folder; give another one")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"paths.output_dir: no permission to write in {existing}; give a folder of your own: paths.output_dir=FOLDER")


def freeze_sweep(cells: Sequence[PlannedCell], output_dir: Path, name: str | None, command: Sequence[str]) -> FrozenSweep:
    """Writes the folders of all cells and the sweep that lists them.

    A finished cell is left as it is, but for evaluations and graders it lacks. An unfinished one that nobody runs is frozen
    anew: its machine settings may have changed, its identity cannot have.

    Args:
        cells: the plan.
        output_dir: the output folder.
        name: of the sweep; None names it by its cells.
        command: the command line, for the record.

    Raises:
        InputError: the folder cannot be written; whatever this call created is gone again.
    """
    created: list[Path] = []
    try:
        for cell in cells:
            _freeze_cell(cell, output_dir, created)
        sweep = _write_sweep(cells, output_dir, name, command)
    except OSError as error:
        for folder in created:
            shutil.rmtree(folder, ignore_errors=True)
        reason = f"{error.strerror or error} ({error.filename})" if error.filename else str(error)
        raise InputError(f"paths.output_dir: cannot write in {output_dir}: {reason}; give another folder, or make room here") from error
    finally:
        with suppress(OSError):  # another command may be drafting too
            (output_dir / "drafts").rmdir()
    folders = tuple(output_dir / "cells" / cell.id for cell in cells)
    finished = frozenset(folder.name for folder in folders if is_finished(folder))
    stale = tuple(folder.name for folder in folders if folder.name in finished and _computed_by(folder) != code_hash())
    return FrozenSweep(sweep, output_dir, folders, finished, stale)


def sweep_name_of(cell_ids: Iterable[str]) -> str:
    """The name of an unnamed sweep: the same cells, in whatever order, make the same sweep."""
    return f"sweep-{sha256_of_json(sorted(set(cell_ids)))[:8]}"


@cache
def code_hash() -> str:
    """Content hash of the library's sources."""
    files = sorted(PACKAGE.rglob("*.py"))
    return sha256_of_json({str(file.relative_to(PACKAGE)): sha256_of_file(file) for file in files})


def _freeze_cell(cell: PlannedCell, output_dir: Path, created: list[Path]) -> None:
    folder = output_dir / "cells" / cell.id
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = output_dir / "drafts" / f"{cell.id}.{os.getpid()}"  # never under cells/: readers list that folder
        created.append(draft)
        draft.mkdir(parents=True)
        _write_cell_file(cell, draft, _code())
        write_status(draft, Status())
        _write_evaluations(cell, draft)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            shutil.rmtree(draft, ignore_errors=True)  # another command was faster: its folder says the same
        else:
            created.append(folder)
            return
    _write_evaluations(cell, folder)
    if not is_finished(folder) and not is_claimed(folder):
        code = read_yaml(folder / "cell.yaml")["code"] if is_trained(folder) else _code()
        _write_cell_file(cell, folder, code)


def _write_cell_file(cell: PlannedCell, folder: Path, code: Mapping[str, Any]) -> None:
    document = {
        "id": cell.id,
        "kind": cell.kind,
        "hash": cell.hash,
        "content": dict(cell.content),
        "science": science_of(cell.config) if cell.kind == "train" else {},  # what tells cells apart, for tables
        "code": dict(code),
        "frozen_at": utc_now(),
        "config": dict(cell.config),
    }
    _write_yaml(folder / "cell.yaml", document)


def _write_evaluations(cell: PlannedCell, folder: Path) -> None:
    for evaluation in cell.evaluations.values():
        file = folder / "evaluations" / evaluation.id / "evaluation.yaml"
        known = read_yaml(file) if file.is_file() else {}
        document = _evaluation_document(evaluation, known)
        if {**known, "schema_version": None} != {**document, "schema_version": None}:
            _write_yaml(file, document)


def _evaluation_document(evaluation: PlannedEvaluation, known: Mapping[str, Any]) -> dict[str, Any]:
    """What to ask and who grades it; graders asked for earlier stay."""
    graders = {**known.get("evaluation", {}).get("graders", {}), **evaluation.evaluation.get("graders", {})}
    node = {**evaluation.evaluation, "graders": graders}
    versions = {**known.get("grader_versions", {}), **evaluation.graders}
    return {
        "id": evaluation.id,
        "content": evaluation.content,
        "grader_versions": versions,
        "evaluation": node,
        "decoding": dict(evaluation.decoding),
    }


def _write_sweep(cells: Sequence[PlannedCell], output_dir: Path, name: str | None, command: Sequence[str]) -> str:
    ids = {kind: [cell.id for cell in cells if cell.kind == kind] for kind in ("train", "start")}
    chosen = name or sweep_name_of(ids["train"] or ids["start"])
    file = output_dir / "sweeps" / chosen / "sweep.json"
    known = read_document(file, required=False)
    evaluations = [evaluation for cell in cells for evaluation in cell.evaluations]
    now = utc_now()
    document = {
        "name": chosen,
        "cells": _union(known.get("cells", []), ids["train"]),
        "starts": _union(known.get("starts", []), ids["start"]),
        "evaluations": _union(known.get("evaluations", []), evaluations),
        "command": list(command),
        "created_at": known.get("created_at", now),
        "updated_at": now,
    }
    write_json_atomic(file, document)
    return chosen


def _write_yaml(file: Path, document: Mapping[str, Any]) -> None:
    text = yaml.safe_dump({"schema_version": SCHEMA_VERSION, **document}, sort_keys=False, allow_unicode=True, width=140)
    write_bytes_atomic(file, text.encode())


def _computed_by(folder: Path) -> str:
    return str(read_yaml(folder / "cell.yaml")["code"]["hash"])


@cache
def _code() -> dict[str, Any]:
    try:
        version = metadata.version("medvlm_dpo")
    except metadata.PackageNotFoundError:  # run from a clone that is not installed
        version = "not installed"
    return {"version": version, "git_commit": _git_commit(), "hash": code_hash()}


def _git_commit() -> str | None:
    if not (PACKAGE.parent / ".git").exists():
        return None
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(PACKAGE.parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return None


def _union(known: Iterable[str], new: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*known, *new]))
