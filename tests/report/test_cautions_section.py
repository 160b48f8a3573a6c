"""Warnings of cells in the table: one line per loss and kind, with the sentence of the first seed that has it."""

import json
from pathlib import Path

from sweep_folders import config_of, finish, write_cell, write_sweep

from medvlm_dpo.report.table import sweep_table
from medvlm_dpo.results.status import read_document, write_result

TITLE = "Warnings: phantom_llava, data phantom"


def table(output: Path, cells: dict[tuple[str, int], tuple[list[str], list[str]]]) -> str:
    """A sweep whose cells left warnings of training and of grading."""
    names: list[str] = []
    for (loss, seed), (trained, graded) in cells.items():
        folder = write_cell(output, f"{loss}-{seed}", config=config_of(loss, seed))
        finish(folder, {})
        result = {
            key: value for key, value in read_document(folder / "result.json").items() if key not in ("schema_version", "finished_at")
        }
        write_result(folder, {**result, "warnings": trained})
        if graded:
            scores = {"schema_version": 1, "evaluation": "phantom", "graders": {}, "warnings": graded}
            (folder / "evaluations" / "phantom-11111111").mkdir(parents=True)
            (folder / "evaluations" / "phantom-11111111" / "scores.json").write_text(json.dumps(scores))
        names.append(folder.name)
    write_sweep(output, "main", names, [])
    return sweep_table(output, "main")


def test_warnings_are_gathered_by_loss_and_kind(tmp_path: Path) -> None:
    fell = "both likelihoods fell: by {} nats"
    shown = table(
        tmp_path,
        {
            ("dpo", 0): ([], []),
            ("dpo", 1): ([fell.format(1)], []),
            ("dpo", 2): ([fell.format(2)], ["lengths drifted: twice"]),
            ("simpo", 0): ([fell.format(3)], []),
            ("sft", 0): ([], []),
        },
    )
    section = shown.partition(f"{TITLE}\n")[2].partition("\n\n")[0].splitlines()[1:]
    assert section == [
        "dpo, 2 of 3 seeds, here 1: both likelihoods fell: by 1 nats.",
        "dpo, 1 of 3 seeds, here 2: lengths drifted: twice.",
        "simpo, seed 0: both likelihoods fell: by 3 nats.",
    ]


def test_no_warnings_no_section(tmp_path: Path) -> None:
    assert "Warnings" not in table(tmp_path, {("dpo", 0): ([], [])})
