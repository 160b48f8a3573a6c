"""The ledger reads every state a sweep can be in, and names the file when it cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from medvlm_dpo.errors import InputError
from medvlm_dpo.files import write_json_atomic
from medvlm_dpo.results.ledger import read_cell, read_sweep
from medvlm_dpo.results.predictions import GradeColumn, StoredAnswer, read_answers, read_grades, read_question_keys, write_predictions
from medvlm_dpo.results.status import Status, mark_ended, mark_running, read_status, write_result, write_status

GRADERS = {"exact": {"version": "1", "overall": {"exact_match": {"value": 0.5, "num_questions": 2, "num_without_score": 0}}}}
GRADERS["exact"]["by_error_type"] = {"presence": {"exact_match": {"value": 1.0, "num_questions": 1, "num_without_score": 0}}}


def frozen(output: Path, name: str = "llava-dpo-phantom-s0-00000000") -> Path:
    folder = output / "cells" / name
    folder.mkdir(parents=True)
    config = {"choices": {"model": "llava", "loss": "dpo"}, "seed": 0}
    (folder / "cell.yaml").write_text(yaml.safe_dump({"schema_version": 1, "id": name, "kind": "train", "config": config}))
    write_status(folder, Status())
    return folder


def test_a_frozen_cell_has_no_numbers_yet(tmp_path):
    cell = read_cell(frozen(tmp_path))
    assert (cell.kind, cell.status, cell.result, cell.evaluations) == ("train", Status(), {}, {})
    assert (cell.choices["loss"], cell.metric("validation/loss")) == ("dpo", None)


def test_the_life_of_a_cell(tmp_path):
    folder = frozen(tmp_path)
    running = mark_running(folder)
    assert (running.state, running.attempt, running.pid) == ("running", 1, os.getpid())
    assert read_status(folder) == running
    failed = mark_ended(folder, "failed", "no memory")
    assert (failed.state, failed.attempt, failed.message, failed.started_at) == ("failed", 1, "no memory", running.started_at)
    assert failed.ended_at is not None
    assert mark_running(folder).attempt == 2
    assert read_status(folder).message == ""
    mark_ended(folder, "finished")
    write_result(folder, {"id": folder.name, "metrics": {"validation/loss": 0.25}})
    write_json_atomic(folder / "evaluations" / "phantom-11111111" / "scores.json", {"graders": GRADERS})
    cell = read_cell(folder)
    assert cell.status.state == "finished"
    assert cell.metric("validation/loss") == 0.25
    assert "finished_at" in cell.result
    record = cell.evaluations["phantom-11111111"]
    assert record.value("exact", "exact_match") == 0.5
    assert record.value("exact", "exact_match", "presence") == 1.0
    assert record.value("exact", "exact_match", "modality") is None
    assert record.value("strict", "closed_accuracy") is None
    assert record.predictions == folder / "evaluations" / "phantom-11111111" / "predictions.parquet"


def test_an_evaluation_without_scores_is_not_there_yet(tmp_path):
    folder = frozen(tmp_path)
    (folder / "evaluations" / "phantom-11111111").mkdir(parents=True)
    assert read_cell(folder).evaluations == {}


def test_an_unknown_state_is_a_mistake_of_the_program(tmp_path):
    with pytest.raises(ValueError, match="choose from frozen, running, finished"):
        write_status(frozen(tmp_path), Status("done"))


def test_a_sweep_keeps_its_order_and_shows_missing_cells(tmp_path):
    folder = frozen(tmp_path)
    document = {"cells": ["never-written", folder.name], "starts": ["no-start"], "evaluations": ["phantom-11111111"]}
    write_json_atomic(tmp_path / "sweeps" / "main" / "sweep.json", document)
    sweep = read_sweep(tmp_path, "main")
    assert [(cell.id, cell.status.state) for cell in sweep.cells] == [("never-written", "missing"), (folder.name, "frozen")]
    assert [cell.status.state for cell in sweep.starts] == ["missing"]
    assert sweep.evaluation_ids == ("phantom-11111111",)
    assert sweep.folder == tmp_path / "sweeps" / "main"


def test_an_unknown_sweep_names_the_nearest(tmp_path):
    write_json_atomic(tmp_path / "sweeps" / "main_grid" / "sweep.json", {"cells": []})
    with pytest.raises(InputError, match=r"no sweep main_gird in .*did you mean main_grid"):
        read_sweep(tmp_path, "main_gird")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("status.json", '{"schema_version": 1, "sta', "cannot be read as JSON"),
        ("status.json", '{"schema_version": 2}', "schema_version 2, this program reads 1"),
        ("result.json", "[1, 2]", "should hold one mapping, found list"),
        ("result.json", '{"metrics": {}}', "schema_version None"),
        ("cell.yaml", "id: [1, 2", "cannot be read as yaml"),
        ("cell.yaml", "just text", "should hold one mapping, found str"),
        ("cell.yaml", "schema_version: 9", "schema_version 9"),
        ("evaluations/phantom-11111111/scores.json", '{"schema_version": 1}', "lists no graders"),
    ],
)
def test_every_complaint_names_its_file(tmp_path, name, content, message):
    folder = frozen(tmp_path)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=message) as refused:
        read_cell(folder)
    assert str(folder / name) in str(refused.value)


ANSWERS = (
    StoredAnswer("q1", "a", "ha", "presence", "closed", "left", ("left", "right"), "left", 2, stopped=True),
    StoredAnswer("q2", "b", "hb", None, "open", "Ödem", (), "", 0, stopped=False),
)
GRADES = {"strict": GradeColumn(("closed_accuracy", "open_recall"), (1.0, None))}


def test_predictions_come_back_as_they_were(tmp_path):
    path = tmp_path / "predictions.parquet"
    write_predictions(path, ANSWERS, GRADES)
    assert read_answers(path) == ANSWERS
    assert read_grades(path, ["strict"]) == GRADES
    assert read_question_keys(path) == (("q1", "q2"), ("ha", "hb"))


def test_no_answers_at_all_is_a_file_too(tmp_path):
    write_predictions(tmp_path / "predictions.parquet", [], {})
    assert read_answers(tmp_path / "predictions.parquet") == ()


def test_unreadable_predictions_are_named(tmp_path):
    path = tmp_path / "predictions.parquet"
    path.write_bytes(b"PAR1 cut")
    with pytest.raises(InputError, match=r"predictions\.parquet cannot be read"):
        read_answers(path)
    write_predictions(path, ANSWERS, GRADES)
    with pytest.raises(InputError, match=r"predictions\.parquet lacks the columns exact_metric, exact_score"):
        read_grades(path, ["exact"])


def test_reading_the_ledger_and_printing_its_table_load_no_model_library():
    """The driver and the report must start in a moment, and work where torch is not installed."""
    code = (
        "import json, sys\n"
        "import medvlm_dpo.report.table, medvlm_dpo.results.ledger, medvlm_dpo.statistics.comparison\n"
        "heavy = ('torch', 'transformers', 'pytorch_lightning', 'peft', 'hydra', 'omegaconf')\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert json.loads(done.stdout) == []
