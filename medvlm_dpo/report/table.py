"""The table at the end of a sweep, built from the ledger: `python -m medvlm_dpo.report.table OUTPUT_FOLDER SWEEP`."""

import argparse
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medvlm_dpo import metrics
from medvlm_dpo.errors import InputError
from medvlm_dpo.files import write_bytes_atomic
from medvlm_dpo.report import sections
from medvlm_dpo.report.cautions import cautions_section
from medvlm_dpo.report.layout import Section, as_markdown, as_text
from medvlm_dpo.report.measures import (
    Difference,
    Measure,
    differences_of,
    evaluations_of,
    identical_seeds,
    measures_of,
    metric_spread,
    pair_metric_spread,
    spread_of,
)
from medvlm_dpo.report.needs import COSTS, cost_spread, needs_section
from medvlm_dpo.report.pair_types import preference_type_sections
from medvlm_dpo.report.rows import Block, Row, blocks_of
from medvlm_dpo.results.ledger import SweepRecord, read_sweep
from medvlm_dpo.statistics.intervals import Spread

CSV_COLUMNS = (
    *("kind", "model", "evaluation", "row", "measure", "grader", "grader_version", "error_type", "mean", "sd", "num_seeds"),
    *("baseline", "difference", "low", "high", "p", "p_holm", "design"),
)
PREFERENCES = (
    metrics.PREFERENCE_ACCURACY,
    metrics.PREFERENCE_GAIN,
    metrics.PREFERENCE_MARGIN,
    metrics.CHOSEN_LOGPS_CHANGE,
    metrics.REJECTED_LOGPS_CHANGE,
)


def sweep_table(output_dir: str | Path, sweep_name: str, *, error_types: bool = False) -> str:
    """The table of one sweep as plain text, finished or not; also written as `table.md` and `table.csv` beside `sweep.json`.

    Args:
        output_dir: the folder that holds `sweeps/` and `cells/`.
        sweep_name: name of the sweep.
        error_types: show preferences per error type too; `table.md` and `table.csv` hold them anyway.

    Raises:
        InputError: no such sweep, or a file of the ledger that cannot be read.
    """
    sweep = read_sweep(Path(output_dir), sweep_name)
    shown = [sections.headline(sweep)]
    lines: list[dict[str, Any]] = []
    for block in blocks_of(sweep):
        parts, numbers = _block_parts(block, sweep)
        shown += parts
        lines += numbers
    missing = sections.missing_section(sweep)
    shown += [missing] if missing else []
    shown.append(sections.places_section(sweep))
    details = [section for block in blocks_of(sweep) for section in preference_type_sections(block)]
    problem = _write(sweep.folder, shown + details, lines)
    return as_text(shown + details if error_types else shown) + problem


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table of a sweep; 2 when it cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m medvlm_dpo.report.table", description="Prints the table of one sweep.")
    parser.add_argument("output_dir", type=Path, help="the folder that holds sweeps/ and cells/")
    parser.add_argument("sweep_name", help="name of the sweep")
    parser.add_argument("--error-types", action="store_true", help="show preferences per error type too")
    given = parser.parse_args(arguments)
    try:
        sys.stdout.write(sweep_table(given.output_dir, given.sweep_name, error_types=given.error_types))
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _block_parts(block: Block, sweep: SweepRecord) -> tuple[list[Section], list[dict[str, Any]]]:
    parts: list[Section] = []
    lines: list[dict[str, Any]] = []
    breakdowns: list[Section] = []
    for evaluation_id in _evaluation_ids(block, sweep):
        measures = measures_of(block, evaluation_id)
        differences = differences_of(block, evaluation_id, measures)
        parts.append(sections.answers_section(block, evaluation_id, measures, identical_seeds(block, evaluation_id)))
        parts += [sections.differences_section(block, evaluation_id, differences)] if differences else []
        breakdown = sections.error_type_section(block, evaluation_id, measures)
        breakdowns += [breakdown] if breakdown else []
        lines += _evaluation_lines(block, evaluation_id, measures, differences)
    preferences = _preference_lines(block)
    parts += [sections.preference_section(block)] if preferences else []
    breakdowns += [section for section in (needs_section(block), cautions_section(block)) if section]
    return parts + breakdowns, lines + preferences + _cost_lines(block)


def _evaluation_ids(block: Block, sweep: SweepRecord) -> list[str]:
    """Evaluations of the sweep that a cell of the block has answers for."""
    return [name for name in sweep.evaluation_ids if any(evaluations_of(row, name) for row in block.rows)]


def _evaluation_lines(
    block: Block, evaluation_id: str, measures: Sequence[Measure], differences: Sequence[Difference]
) -> Iterator[dict[str, Any]]:
    where = {"model": block.model, "evaluation": evaluation_id}
    for measure in measures:
        what = {"measure": measure.metric, "grader": measure.grader, "grader_version": measure.version}
        for row in block.rows:
            for error_type in ["", *_error_types(row, evaluation_id, measure)]:
                spread = spread_of(row, evaluation_id, measure, error_type or None)
                yield {"kind": "score", **where, "row": row.label, **what, "error_type": error_type, **_numbers(spread)}
    for difference in differences:
        measure = difference.measure
        what = {"measure": measure.metric, "grader": measure.grader, "grader_version": measure.version}
        yield {"kind": "difference", **where, "row": difference.row, **what, **_difference_numbers(difference)}


def _preference_lines(block: Block) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for row in block.rows:
        types = sorted({error_type for cell in row.cells.values() for error_type in cell.pair_error_types})
        for name in PREFERENCES:
            found = {"": metric_spread(row, metrics.metric(metrics.VALIDATION, name))}
            found |= {error_type: pair_metric_spread(row, error_type, name) for error_type in types}
            what = {"kind": "preference", "model": block.model, "row": row.label, "measure": name}
            lines += [{**what, "error_type": kind, **_numbers(spread)} for kind, spread in found.items() if spread is not None]
    return lines


def _cost_lines(block: Block) -> list[dict[str, Any]]:
    found = [(row, name, cost_spread(row, name)) for row in block.rows for name in COSTS]
    what = {"kind": "cost", "model": block.model}
    return [{**what, "row": row.label, "measure": name, **_numbers(spread)} for row, name, spread in found if spread is not None]


def _error_types(row: Row, evaluation_id: str, measure: Measure) -> list[str]:
    records = evaluations_of(row, evaluation_id).values()
    return sorted({name for record in records for name in record.scores["graders"].get(measure.grader, {}).get("by_error_type", {})})


def _numbers(spread: Spread | None) -> dict[str, Any]:
    return {} if spread is None else {"mean": spread.mean, "sd": spread.sd, "num_seeds": spread.num_seeds}


def _difference_numbers(difference: Difference) -> dict[str, Any]:
    comparison = difference.comparison
    if comparison is None:
        return {"baseline": difference.baseline, "design": difference.why_not}
    width = comparison.half_width
    limits = {} if width is None else {"low": comparison.difference - width, "high": comparison.difference + width}
    numbers = {"difference": comparison.difference, **limits, "p": comparison.p, "p_holm": difference.holm_p}
    return {"baseline": difference.baseline, **numbers, "design": comparison.design}


def _write(folder: Path, shown: Sequence[Section], lines: Sequence[dict[str, Any]]) -> str:
    """Writes the two files; a folder that may only be read still gets its table printed, with a word about it."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    try:
        write_bytes_atomic(folder / "table.md", as_markdown(shown).encode())
        write_bytes_atomic(folder / "table.csv", stream.getvalue().encode())
    except OSError as error:
        return f"\ntable.md and table.csv were not written: {error}\n"
    return ""


if __name__ == "__main__":
    sys.exit(main())
