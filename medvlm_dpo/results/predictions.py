"""`predictions.parquet`: every raw answer of one evaluation with its grades. The only place that knows its columns."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from medvlm_dpo.errors import InputError
from medvlm_dpo.files import SCHEMA_VERSION, write_bytes_atomic

FILE_NAME = "predictions.parquet"


@dataclass(frozen=True)
class StoredAnswer:
    """One answer with what grading and statistics need to know of its question; no picture is needed to grade it again.

    Args:
        question_id: unique within the evaluation.
        image_key, image_hash: name and content hash of the picture; questions with one hash are one sampled image.
        error_type: what the question tests, if known.
        answer_type: `open` or `closed`.
        gold, options: the right answer, and every admissible answer of a closed question that is not yes/no.
        answer: what the model wrote.
        num_tokens: generated tokens.
        stopped: whether the model ended its answer by itself, within the length limit.
    """

    question_id: str
    image_key: str
    image_hash: str
    error_type: str | None
    answer_type: str
    gold: str
    options: tuple[str, ...]
    answer: str
    num_tokens: int
    stopped: bool


@dataclass(frozen=True)
class GradeColumn:
    """One grader's scores, in the order of the answers.

    Args:
        metrics: the average each score belongs to.
        scores: from 0 to 1, None where the grader has no rule for the question.
    """

    metrics: tuple[str, ...]
    scores: tuple[float | None, ...]


_ANSWER_FIELDS: Mapping[str, pa.DataType] = {
    "question_id": pa.string(),
    "image_key": pa.string(),
    "image_hash": pa.string(),
    "error_type": pa.string(),
    "answer_type": pa.string(),
    "gold": pa.string(),
    "options": pa.list_(pa.string()),
    "answer": pa.string(),
    "num_tokens": pa.int32(),
    "stopped": pa.bool_(),
}


def write_predictions(path: Path, answers: Sequence[StoredAnswer], grades: Mapping[str, GradeColumn]) -> None:
    """Writes the answers, and per grader `<name>_metric` and `<name>_score`, atomically."""
    rows = [vars(answer) for answer in answers]
    columns: dict[str, pa.Array] = {name: pa.array([row[name] for row in rows], kind) for name, kind in _ANSWER_FIELDS.items()}
    for name, grade in grades.items():
        columns[f"{name}_metric"] = pa.array(grade.metrics, pa.string())
        columns[f"{name}_score"] = pa.array(grade.scores, pa.float64())
    table = pa.table(columns).replace_schema_metadata({"schema_version": str(SCHEMA_VERSION)})
    stream = io.BytesIO()
    pq.write_table(table, stream)
    write_bytes_atomic(path, stream.getvalue())


def read_answers(path: Path) -> tuple[StoredAnswer, ...]:
    """The answers of a file written by `write_predictions`."""
    rows = _read(path, list(_ANSWER_FIELDS)).to_pylist()
    return tuple(StoredAnswer(**{**row, "options": tuple(row["options"] or ())}) for row in rows)


def read_grades(path: Path, names: Sequence[str]) -> dict[str, GradeColumn]:
    """The stored scores of some graders."""
    table = _read(path, [f"{name}_{part}" for name in names for part in ("metric", "score")])
    return {name: GradeColumn(tuple(table[f"{name}_metric"].to_pylist()), tuple(table[f"{name}_score"].to_pylist())) for name in names}


def read_question_keys(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Question ids and image hashes, in the order of the answers: what a comparison joins and clusters by."""
    table = _read(path, ["question_id", "image_hash"])
    return tuple(table["question_id"].to_pylist()), tuple(table["image_hash"].to_pylist())


def read_texts(path: Path) -> tuple[str, ...]:
    """The answers alone, in their order."""
    return tuple(_read(path, ["answer"])["answer"].to_pylist())


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path} cannot be read as a predictions file ({error}); remove it, and the same command makes it anew."
        ) from error
    version = (table.schema.metadata or {}).get(b"schema_version", b"?").decode()
    if version != str(SCHEMA_VERSION):
        raise InputError(f"{path} has schema_version {version}, this program reads {SCHEMA_VERSION}; use the version that wrote it.")
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise InputError(f"{path} lacks the columns {', '.join(missing)}; remove it, and the same command makes it anew.")
    return table.select(columns)
