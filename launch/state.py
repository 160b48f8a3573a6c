"""What the files of a cell say about it."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import yaml

from medvlm_dpo.files import read_json, utc_now, write_json_atomic


def read_yaml(file: Path) -> dict[str, Any]:
    """One mapping from a frozen yaml file."""
    document: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return document


def is_finished(folder: Path) -> bool:
    """Whether a cell has its result, and every frozen evaluation a grade by every grader in the version asked for."""
    if not (folder / "result.json").is_file():
        return False
    return all(_is_graded(file) for file in sorted(folder.glob("evaluations/*/evaluation.yaml")))


def change_status(folder: Path, **changes: Any) -> None:
    """Writes some fields of status.json and keeps the others."""
    status = _status(folder)
    status.pop("schema_version", None)
    write_json_atomic(folder / "status.json", {**status, **changes})


def begin_attempt(folder: Path) -> None:
    """Marks a cell as running in this process."""
    change_status(
        folder,
        state="running",
        attempt=int(_status(folder).get("attempt", 0)) + 1,
        started_at=utc_now(),
        ended_at=None,
        message="",
        pid=os.getpid(),
        host=socket.gethostname(),
    )


def end_attempt(folder: Path, state: str, message: str = "") -> None:
    """Marks a cell as finished, failed or interrupted."""
    change_status(folder, state=state, ended_at=utc_now(), message=message)


def status_of(folder: Path) -> dict[str, Any]:
    """The fields of status.json; empty when there is none."""
    return _status(folder)


def last_lines(file: Path, count: int = 15) -> list[str]:
    """The last lines of a log. Of a progress bar, which overwrites its line, only the last state counts."""
    if not file.is_file():
        return []
    lines = file.read_bytes()[-100_000:].decode(errors="replace").split("\n")
    return [line.rstrip("\r").rpartition("\r")[2] for line in lines if line.strip()][-count:]


def _is_graded(evaluation_file: Path) -> bool:
    scores_file = evaluation_file.with_name("scores.json")
    if not scores_file.is_file():
        return False
    graded = read_json(scores_file).get("graders", {})
    wanted: dict[str, str] = read_yaml(evaluation_file).get("grader_versions", {})
    return all(name in graded and graded[name].get("version") == version for name, version in wanted.items())


def _status(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "status.json")
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
