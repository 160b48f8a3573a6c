"""The parts of the end-of-sweep table: answers, differences, preferences, error types, cells that are missing, places."""

from collections.abc import Sequence

from medvlm_dpo import metrics
from medvlm_dpo.report.cells import NOTHING, difference_text, nats, percent, seeds_text
from medvlm_dpo.report.layout import Section
from medvlm_dpo.report.measures import Difference, Measure, accuracy_before_training, evaluations_of, metric_spread, spread_of
from medvlm_dpo.report.rows import Block, Row
from medvlm_dpo.results.ledger import CellRecord, EvaluationRecord, SweepRecord

ERROR_TYPE_MEASURE = ("exact", "exact_match")
LONGEST_REASON = 80
STATE_WORDS = {"frozen": "not started", "missing": "its folder does not exist"}
PHANTOM_MODULE = "medvlm_dpo.data.phantom."
PHANTOM_NOTE = "The phantom's pictures and findings are made up by a program: nothing here is a medical result."
VALIDATION = metrics.VALIDATION


def headline(sweep: SweepRecord) -> Section:
    """What this is a table of."""
    cells = sweep.cells
    finished = sum(cell.status.state == "finished" for cell in cells)
    notes = [f"{len(cells)} cell{'s' if len(cells) != 1 else ''}: {finished} finished, {len(cells) - finished} not."]
    if any(PHANTOM_MODULE in str(cell.config.get(group)) for cell in cells for group in ("data", "evaluation")):
        notes.append(PHANTOM_NOTE)
    codes = {cell.cell.get("code", {}).get("hash") for cell in cells if cell.result}
    if len(codes) > 1:
        notes.append(f"These cells were run by {len(codes)} versions of the code; cell.yaml of each says which.")
    dropped = [cell for cell in cells if cell.result.get("dropped_records")]
    if dropped:
        most = max(len(cell.result["dropped_records"]) for cell in dropped)
        notes.append(f"{len(dropped)} cells left out bad records (up to {most}); result.json of each lists them.")
    return Section(f"Sweep {sweep.name}", notes=tuple(notes))


def answers_section(block: Block, evaluation_id: str, measures: Sequence[Measure], twins: Sequence[tuple[Row, int, int]] = ()) -> Section:
    """Rows = losses, columns = averages of the graders.

    Args:
        block: the rows.
        evaluation_id: the evaluation shown.
        measures: the columns.
        twins: rows with two seeds whose answers are all equal.
    """
    records = [record for row in block.rows for record in evaluations_of(row, evaluation_id).values()]
    rows = tuple(
        (row.label, _seeds(row, evaluation_id), *(percent(spread_of(row, evaluation_id, measure)) for measure in measures))
        for row in block.rows
    )
    header = ("loss", "seeds", *(f"{measure.grader} v{measure.version}\n{_words(measure.metric)}" for measure in measures))
    notes = ["In percent, mean ± sample standard deviation over seeds (a description, not an interval). Each grader with its version."]
    if any(len(evaluations_of(row, evaluation_id)) == 1 and not row.is_start for row in block.rows):
        notes.append("1 seed: no spread.")
    notes += _answer_notes(records)
    notes += [f"{row.label}: seeds {one} and {two} gave identical answers; is the seed used?" for row, one, two in twins]
    return Section(f"Answers: {_title(block, evaluation_id)}, {_size(records)}", header, rows, tuple(notes))


def differences_section(block: Block, evaluation_id: str, differences: Sequence[Difference]) -> Section:
    """Every row minus the start and minus `sft`."""
    cells: dict[Measure, dict[str, dict[str, str]]] = {}
    for difference in differences:
        cells.setdefault(difference.measure, {}).setdefault(difference.row, {})[difference.baseline] = difference_text(difference)
    rows: list[tuple[str, ...]] = []
    for measure, by_row in cells.items():
        rows.append((f"{measure.grader} v{measure.version}: {_words(measure.metric)}", "", ""))
        rows += [(f"  {label}", texts.get("start", NOTHING), texts.get("sft", NOTHING)) for label, texts in by_row.items()]
    title = f"Differences: {_title(block, evaluation_id)}"
    return Section(title, ("loss", "minus start", "minus sft"), tuple(rows), _difference_notes(differences))


def preference_section(block: Block) -> Section:
    """How training moved the held-out pairs, alike for every loss."""
    names = [metrics.PREFERENCE_ACCURACY, metrics.PREFERENCE_GAIN, metrics.PREFERENCE_MARGIN]
    names += [metrics.CHOSEN_LOGPS_CHANGE, metrics.REJECTED_LOGPS_CHANGE]
    rows: list[tuple[str, ...]] = []
    for row in block.rows:
        accuracy, gain, margin, chosen, rejected = (metric_spread(row, metrics.metric(VALIDATION, name)) for name in names)
        if row.is_start and (before := accuracy_before_training(block)) is not None:
            rows.append((row.label, percent(before), NOTHING, NOTHING, NOTHING))
        if accuracy is None and gain is None:
            continue
        together = NOTHING if gain is None or margin is None else f"{percent(gain)} at {nats(margin)}"
        rows.append((row.label, percent(accuracy), together, nats(chosen), nats(rejected)))
    header = (
        "loss",
        "preference_accuracy\n%",
        "preference_gain at its mean margin\n% at nats",
        "chosen log-prob\nchange, nats",
        "rejected log-prob\nchange, nats",
    )
    notes = (
        "preference_accuracy: share of validation pairs whose chosen answer has the higher mean log-probability. preference_gain: share "
        "whose chosen answer gained more on the start than the rejected one; it says nothing when the margin beside it is near 0.",
        "The rewards of a loss are in its own units and are not compared here.",
    )
    title = f"Preferences on the validation pairs: {block.model}, data {', '.join(block.data)}{_pairs_words(block)}"
    return Section(title, header, tuple(rows), notes)


def _pairs_words(block: Block) -> str:
    """How many pairs the numbers rest on, e.g. `, 300 pairs`; empty where no cell says so."""
    results = [cell.result for row in block.rows for cell in row.cells.values()]
    counts = sorted({result["num_examples"]["validation"] for result in results if "num_examples" in result})
    return f", {' or '.join(map(str, counts))} pairs" if counts else ""


def error_type_section(block: Block, evaluation_id: str, measures: Sequence[Measure]) -> Section | None:
    """Exact match per error type, means over seeds; None when the questions have no error types or there is no such grader."""
    measure = next((measure for measure in measures if (measure.grader, measure.metric) == ERROR_TYPE_MEASURE), None)
    if measure is None:
        return None
    counts: dict[str, int] = {}
    for row in block.rows:
        for record in evaluations_of(row, evaluation_id).values():
            for error_type, averages in record.scores["graders"].get(measure.grader, {}).get("by_error_type", {}).items():
                counts[error_type] = averages.get(measure.metric, {}).get("num_questions", 0)
    if not counts:
        return None
    header = ("loss", *(f"{error_type}\nn = {count}" for error_type, count in sorted(counts.items())))
    rows = tuple(
        (row.label, *(percent(spread_of(row, evaluation_id, measure, error_type)) for error_type in sorted(counts))) for row in block.rows
    )
    title = f"Exact match per error type: {_title(block, evaluation_id)}"
    return Section(title, header, rows, (f"In percent, mean ± standard deviation over seeds; grader {measure.grader} v{measure.version}.",))


def missing_section(sweep: SweepRecord) -> Section | None:
    """Cells that failed, were not run, or were not graded; None when there are none."""
    rows = [(cell.id, _trouble(cell, sweep)) for cell in (*sweep.starts, *sweep.cells) if _trouble(cell, sweep)]
    if not rows:
        return None
    note = "They are missing above. The same command runs what is unfinished; log.txt in the folder of a cell says more."
    return Section("Not finished", ("cell", "state"), tuple(rows), (note,))


def places_section(sweep: SweepRecord) -> Section:
    """Where everything lies."""
    cells, output = sweep.output_dir / "cells", sweep.output_dir
    rows = [
        ("this table", f"{sweep.folder / 'table.md'}, {sweep.folder / 'table.csv'}"),
        ("the sweep", str(sweep.folder / "sweep.json")),
        ("a cell", f"{cells}/CELL/: cell.yaml, result.json, metrics.jsonl, log.txt"),
        ("its adapter", f"{cells}/CELL/adapter/ (peft loads it)"),
        ("its answers", f"{cells}/CELL/evaluations/{(sweep.evaluation_ids or ('EVALUATION',))[0]}/predictions.parquet"),
        ("print again", f"python -m medvlm_dpo.report.table {output} {sweep.name}   (--error-types: more)"),
    ]
    example = next((cell.id for cell in sweep.cells if cell.cell), None)
    notes = (f"CELL is, for example, {example}.",) if example else ()
    return Section("Where everything lies", ("what", "where"), tuple(rows), notes)


def _trouble(cell: CellRecord, sweep: SweepRecord) -> str:
    status = cell.status
    if status.state == "finished":
        lacking = [name for name in sweep.evaluation_ids if name not in cell.evaluations]
        return f"finished, not graded on {', '.join(lacking)}" if lacking and _is_asked(lacking, sweep, cell) else ""
    reason = " ".join(status.message.split())
    reason = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}..."
    attempt = f" (attempt {status.attempt})" if status.attempt > 1 else ""
    return f"{STATE_WORDS.get(status.state, status.state)}{attempt}{': ' if reason else ''}{reason}"


def _is_asked(lacking: Sequence[str], sweep: SweepRecord, cell: CellRecord) -> bool:
    """A sweep may hold cells with different evaluations: what a cell was frozen with, it owes."""
    return any((cell.folder / "evaluations" / name / "evaluation.yaml").exists() for name in lacking) or not sweep.evaluation_ids


def _difference_notes(differences: Sequence[Difference]) -> tuple[str, ...]:
    made = [difference.comparison for difference in differences if difference.comparison is not None]
    notes = [
        "In percentage points, row minus baseline on the same questions, with a 95 % interval in which training seeds and images both "
        "vary (paired by seed where the seeds are the same). Each interval is for its own comparison.",
        f"higher, lower: still there after Holm's correction over the {len(differences)} differences of this table. uncorrected: the "
        "interval leaves 0 out, but among so many comparisons that can be chance. not distinguishable: it contains 0, which does not "
        "show that the two are equal.",
    ]
    if any(comparison.design == "checkpoints" for comparison in made):
        notes.append("1 seed: the interval is about these two checkpoints, not about the losses; no p-value, no claim.")
    if any(comparison.design == "unpaired" for comparison in made):
        notes.append("Where fewer than three quarters of the seeds are common, all seeds of both sides are used, unpaired.")
    if any(2 in map(len, comparison.seeds) for comparison in made):
        notes.append("2 seeds: t = 12.7, so intervals are wide; treat them as a pilot.")
    if any(comparison.half_width is None for comparison in made):
        notes.append("Fewer than 10 images or questions: the difference is a count, not evidence.")
    return tuple(notes)


def _answer_notes(records: Sequence[EvaluationRecord]) -> list[str]:
    answers = [record.scores.get("answers", {}) for record in records]
    empty, unstopped = (sum(answer.get(name, 0) for answer in answers) for name in ("num_empty", "num_unstopped"))
    notes: list[str] = []
    if empty or unstopped:
        total = sum(record.scores.get("questions", 0) for record in records)
        notes.append(f"Of all {total} answers {empty} are empty (graded like any other) and {unstopped} reached the length limit.")
    for measure, count in sorted(_without_score(records).items()):
        notes.append(f"{measure}: {count} questions have no score and are left out of the average.")
    return notes


def _without_score(records: Sequence[EvaluationRecord]) -> dict[str, int]:
    found: dict[str, int] = {}
    for record in records:
        for grader, grades in record.scores["graders"].items():
            for metric, average in grades["overall"].items():
                if average.get("num_without_score"):
                    found[f"{grader} {_words(metric)}"] = average["num_without_score"]
    return found


def _size(records: Sequence[EvaluationRecord]) -> str:
    sizes = sorted({f"{record.scores.get('questions', '?')} questions on {record.scores.get('images', '?')} images" for record in records})
    return " or ".join(sizes)


def _seeds(row: Row, evaluation_id: str) -> str:
    return NOTHING if row.is_start else seeds_text(sorted(evaluations_of(row, evaluation_id)), sorted(row.cells))


def _title(block: Block, evaluation_id: str) -> str:
    return f"{block.model} on {evaluation_id}"


def _words(metric: str) -> str:
    return metric.replace("_", " ")
