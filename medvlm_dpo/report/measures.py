"""What is measured of a row: averages over seeds, and differences of rows question by question."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medvlm_dpo import metrics
from medvlm_dpo.report.rows import Block, Row
from medvlm_dpo.results.ledger import EvaluationRecord
from medvlm_dpo.results.predictions import GradeColumn, read_grades, read_question_keys, read_texts
from medvlm_dpo.statistics.comparison import Comparison, Scored, compare
from medvlm_dpo.statistics.intervals import Spread, holm, mean_and_spread

SAME = 1e-6  # the same model on the same pairs, up to rounding


class Measure(NamedTuple):
    """One average a grader gives, with the version of the grader."""

    grader: str
    version: str
    metric: str


class Difference(NamedTuple):
    """A row minus a baseline on one measure.

    Args:
        row, baseline: labels.
        measure: what is compared.
        comparison: the result, or None.
        why_not: the reason when there is none.
        holm_p: p-value adjusted over all differences of the block and evaluation; None without a p-value.
    """

    row: str
    baseline: str
    measure: Measure
    comparison: Comparison | None
    why_not: str = ""
    holm_p: float | None = None


def measures_of(block: Block, evaluation_id: str) -> list[Measure]:
    """Every measure found in the block; another version of a grader is another measure."""
    found: dict[Measure, None] = {}
    for row in block.rows:
        for record in evaluations_of(row, evaluation_id).values():
            for grader, grades in sorted(record.scores["graders"].items()):
                found |= {Measure(grader, str(grades["version"]), metric): None for metric in grades["overall"]}
    return sorted(found)


def evaluations_of(row: Row, evaluation_id: str) -> dict[int, EvaluationRecord]:
    """The graded cells of a row, by seed."""
    return {seed: cell.evaluations[evaluation_id] for seed, cell in row.cells.items() if evaluation_id in cell.evaluations}


def spread_of(row: Row, evaluation_id: str, measure: Measure, error_type: str | None = None) -> Spread | None:
    """Mean and spread over seeds of one measure; None when no cell has it."""
    records = evaluations_of(row, evaluation_id).values()
    values = [record.value(measure.grader, measure.metric, error_type) for record in records if _has(record, measure)]
    known = [value for value in values if value is not None]
    return mean_and_spread(known) if known else None


def metric_spread(row: Row, name: str) -> Spread | None:
    """Mean and spread over seeds of one number of the training."""
    known = [value for value in (cell.metric(name) for cell in row.cells.values()) if value is not None]
    return mean_and_spread(known) if known else None


def pair_metric_spread(row: Row, error_type: str, name: str) -> Spread | None:
    """Mean and spread over seeds of one diagnostic on the validation pairs of one error type."""
    known = [value for value in (cell.pair_metric(error_type, name) for cell in row.cells.values()) if value is not None]
    return mean_and_spread(known) if known else None


def accuracy_before_training(block: Block) -> Spread | None:
    """preference_accuracy of the untouched start on the validation pairs; None unless all cells that measured it agree.

    The start has no pairs of its own: every cell measures it on its data before its first step.
    """
    name = metrics.metric(metrics.VALIDATION, metrics.PREFERENCE_ACCURACY)
    found = [cell.result.get("start_metrics", {}).get(name) for row in block.rows for cell in row.cells.values() if cell.result]
    known = [value for value in found if value is not None]
    if not known or max(known) - min(known) > SAME:
        return None
    return Spread(known[0], None, 1)


def differences_of(block: Block, evaluation_id: str, measures: Sequence[Measure]) -> list[Difference]:
    """Every row against the start and against `sft`, on every measure, with Holm's correction over all of them."""
    reader = _ScoreReader()
    found = [
        difference
        for measure in measures
        for row in block.rows
        if not row.is_start
        for difference in _both(block, row, evaluation_id, measure, reader)
    ]
    adjusted = holm([difference.comparison.p if difference.comparison else None for difference in found])
    return [difference._replace(holm_p=p) for difference, p in zip(found, adjusted, strict=True)]


def identical_seeds(block: Block, evaluation_id: str) -> list[tuple[Row, int, int]]:
    """Rows with two seeds that gave the same answer to every question: a sign that the seed is not used."""
    found: list[tuple[Row, int, int]] = []
    for row in block.rows:
        seen: dict[tuple[str, ...], int] = {}
        for seed, record in evaluations_of(row, evaluation_id).items():
            first = seen.setdefault(read_texts(record.predictions), seed)
            found += [(row, first, seed)] if first != seed else []
    return found


def _both(block: Block, row: Row, evaluation_id: str, measure: Measure, reader: "_ScoreReader") -> list[Difference]:
    baselines: list[tuple[str, Row | str | None]] = [
        ("start", block.start or "n/a: the start has no cell"),
        ("sft", block.baseline_of(row)),
    ]
    found: list[Difference] = []
    for name, baseline in baselines:
        if isinstance(baseline, str):
            found.append(Difference(row.label, name, measure, None, baseline))
        elif baseline is not None:
            comparison = reader.compare(row, baseline, evaluation_id, measure)
            why_not = comparison if isinstance(comparison, str) else ""
            found.append(Difference(row.label, name, measure, None if isinstance(comparison, str) else comparison, why_not))
    return found


def _has(record: EvaluationRecord, measure: Measure) -> bool:
    return str(record.scores["graders"].get(measure.grader, {}).get("version")) == measure.version


@dataclass
class _ScoreReader:
    """Reads each predictions file once."""

    keys: dict[Path, tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict[Path, tuple[tuple[str, ...], tuple[str, ...]]])
    grades: dict[tuple[Path, str], GradeColumn] = field(default_factory=dict[tuple[Path, str], GradeColumn])

    def compare(self, row: Row, baseline: Row, evaluation_id: str, measure: Measure) -> Comparison | str:
        """The comparison, or why there is none."""
        sides = [
            {seed: record for seed, record in evaluations_of(side, evaluation_id).items() if _has(record, measure)}
            for side in (row, baseline)
        ]
        if not sides[0] or not sides[1]:
            return "n/a: not graded yet"
        records = [record for side in sides for record in side.values()]
        questions = {self._questions(record) for record in records}
        selections = {self._selection(record, measure) for record in records}
        if len(questions) > 1 or len(selections) > 1:
            return "n/a: other questions"
        selected = np.array(next(iter(selections)), dtype=bool)
        if not selected.any():
            return "n/a: no scores"
        images = np.unique(np.array(next(iter(questions))[1]), return_inverse=True)[1][selected].astype(np.int64)
        ours, theirs = (
            Scored({seed: self._scores(record, measure)[selected] for seed, record in side.items()}, deterministic=which.is_start)
            for side, which in zip(sides, (row, baseline), strict=True)
        )
        return compare(ours, theirs, images)

    def _questions(self, record: EvaluationRecord) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if record.predictions not in self.keys:
            self.keys[record.predictions] = read_question_keys(record.predictions)
        return self.keys[record.predictions]

    def _grades(self, record: EvaluationRecord, grader: str) -> GradeColumn:
        key = (record.predictions, grader)
        if key not in self.grades:
            self.grades[key] = read_grades(record.predictions, [grader])[grader]
        return self.grades[key]

    def _selection(self, record: EvaluationRecord, measure: Measure) -> tuple[bool, ...]:
        column = self._grades(record, measure.grader)
        return tuple(metric == measure.metric and score is not None for metric, score in zip(column.metrics, column.scores, strict=True))

    def _scores(self, record: EvaluationRecord, measure: Measure) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([np.nan if score is None else score for score in self._grades(record, measure.grader).scores])
