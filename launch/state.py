"""What the files of a cell say about it."""

from pathlib import Path
from typing import Any

import yaml

from medvlm_dpo.errors import InputError
from medvlm_dpo.results.status import RESULT_FILE, read_document


def read_yaml(file: Path) -> dict[str, Any]:
    """One mapping from a frozen yaml file.

    Raises:
        InputError: it cannot be read, or is no mapping.
    """
    try:
        document: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file} cannot be read ({reason}); remove its folder, and the same command writes it anew") from error
    if not isinstance(document, dict):
        raise InputError(f"{file} should hold one mapping, found {type(document).__name__}; remove its folder, and give the command again")
    return document


def is_trained(folder: Path) -> bool:
    """Whether a cell's training is complete."""
    return (folder / RESULT_FILE).is_file()


def is_finished(folder: Path) -> bool:
    """Whether a cell has its result, and every frozen evaluation a grade by every grader in the version asked for."""
    return is_trained(folder) and all(_is_graded(file) for file in sorted(folder.glob("evaluations/*/evaluation.yaml")))


def last_lines(file: Path, count: int = 15) -> list[str]:
    """The last lines of a log. Of a progress bar, which overwrites its line, only the last state counts."""
    if not file.is_file():
        return []
    lines = file.read_bytes()[-100_000:].decode(errors="replace").split("\n")
    return [line.rstrip("\r").rpartition("\r")[2] for line in lines if line.strip()][-count:]


def _is_graded(evaluation_file: Path) -> bool:
    graded = read_document(evaluation_file.with_name("scores.json"), required=False).get("graders", {})
    wanted: dict[str, str] = read_yaml(evaluation_file).get("grader_versions", {})
    scored = all(evaluation_file.with_name(name).is_file() for name in ("scores.json", "predictions.parquet"))
    return scored and all(name in graded and graded[name].get("version") == version for name, version in wanted.items())
