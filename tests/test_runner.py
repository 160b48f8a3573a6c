"""The runner: a frozen cell, from its folder alone, to an adapter, a result and scores; and what it refuses."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from core_world import loss_node, make_config, metrics_of, write_user_pairs, write_user_questions

from launch.freeze import freeze_sweep
from launch.plan import plan_cells
from launch.state import is_finished
from medvlm_dpo.backbones.llava import LlavaBackbone
from medvlm_dpo.check import check_cells
from medvlm_dpo.errors import InputError, TrainingStoppedError
from medvlm_dpo.files import read_json
from medvlm_dpo.module import PreferenceModule
from medvlm_dpo.results.ledger import read_cell
from medvlm_dpo.runner import main, run_cell

ROOT = Path(__file__).resolve().parent.parent
ADAPTER = "adapter/adapter_model.safetensors"
STRICT = {"_target_": "medvlm_dpo.evaluation.graders.strict.grader"}


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(mode=False)


class Cells(dict[str, Path]):
    """Folders of frozen cells by kind."""


def freeze(model: Path, output_dir: Path, **changes: Any) -> Cells:
    config = make_config(model, output_dir, **changes)
    checked = check_cells([config], str(output_dir / "manifest.json"), full=False)
    planned = plan_cells([config], checked)
    freeze_sweep(planned, output_dir, "test", ["test"])
    return Cells({cell.kind: output_dir / "cells" / cell.id for cell in planned})


def rows_of(cell: Path, evaluation: int = 0) -> list[dict[str, Any]]:
    folders = sorted((cell / "evaluations").iterdir())
    return pq.read_table(folders[evaluation] / "predictions.parquet").to_pylist()


def scores_of(cell: Path) -> dict[str, Any]:
    return read_json(next(iter(sorted((cell / "evaluations").iterdir()))) / "scores.json")


# --- a cell's life -----------------------------------------------------------------------------------------------------


def test_a_frozen_cell_runs_to_adapter_result_and_scores(untrained_model: Path, tmp_path: Path) -> None:
    cell = freeze(untrained_model, tmp_path)["train"]

    assert run_cell(cell) == 0

    result = read_json(cell / "result.json")
    document = yaml.safe_load((cell / "cell.yaml").read_text())
    assert result["id"] == cell.name == document["id"]
    assert (result["hash"], result["kind"], result["seed"], result["data_class"]) == (document["hash"], "train", 0, "public")
    assert result["choices"]["loss"] == "dpo"
    assert result["num_examples"] == {"train": 8, "validation": 4}
    assert result["training"]["steps"] == 3
    assert result["needs"]["policy_with_gradient"] == result["needs"]["reference"] == ["chosen", "rejected"]
    assert result["threads"] == 1
    assert {"steps", "examples", "tokens", "seconds", "steps_per_second", "peak_memory_mb", "trainable_parameters"} <= result[
        "training"
    ].keys()
    assert {"train/loss", "train/learning_rate", "validation/preference_accuracy", "validation/preference_margin"} <= result[
        "metrics"
    ].keys()
    assert result["packages"]["torch"] == torch.__version__
    assert (cell / ADAPTER).is_file()
    assert (cell / "adapter" / "adapter_config.json").is_file()
    assert len(metrics_of(cell)) == 5
    scores = scores_of(cell)
    assert scores["questions"] == 6
    assert scores["graders"]["exact"]["overall"]["exact_match"]["num_questions"] == 6
    assert scores["decoding"] == {"max_new_tokens": 4, "strategy": "greedy"}
    assert len(rows_of(cell)) == 6
    assert read_cell(cell).metric("train/loss") == result["metrics"]["train/loss"]


@pytest.mark.parametrize("loss", ["kto", "bco"])
def test_a_cell_learns_from_undesirable_answers_alone(untrained_model: Path, tmp_path: Path, loss: str) -> None:
    data = write_user_pairs(tmp_path / "user", [(None, f"No, {place}.") for place in range(6)])
    data["validation_fraction"] = 0.5
    cell = freeze(untrained_model, tmp_path / "outputs", data=data, loss=loss_node(loss), trainer={"micro_batch_size": 1})["train"]

    assert run_cell(cell) == 0
    lines = metrics_of(cell)
    names = {name for line in lines for name in line}
    assert {"train/rejected_reward", "validation/rejected_logps_change"} <= names
    assert not any("chosen" in name or "margin" in name for name in names)
    norms = [line["train/gradient_norm"] for line in lines if "train/gradient_norm" in line]
    assert len(norms) == 3
    assert min(norms) > 0


def test_a_start_cell_answers_with_the_untouched_model(untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = freeze(untrained_model, tmp_path)["start"]
    monkeypatch.setattr(LlavaBackbone, "add_adapter", None)

    assert run_cell(cell) == 0

    assert read_json(cell / "result.json")["kind"] == "start"
    assert not (cell / "adapter").exists()
    assert len(rows_of(cell)) == 6


def test_an_untrained_adapter_answers_like_the_start(untrained_model: Path, tmp_path: Path) -> None:
    cells = freeze(untrained_model, tmp_path, trainer={"learning_rate": 0.0, "max_steps": 1})
    for cell in cells.values():
        run_cell(cell)

    answers = {kind: [(row["question_id"], row["answer"]) for row in rows_of(cell)] for kind, cell in cells.items()}
    assert answers["train"] == answers["start"]


def test_the_same_cell_twice_is_bit_equal_and_another_seed_is_not(untrained_model: Path, tmp_path: Path) -> None:
    cells = {name: freeze(untrained_model, tmp_path / name, seed=seed)["train"] for name, seed in (("a", 0), ("b", 0), ("c", 1))}
    for cell in cells.values():
        run_cell(cell)

    assert cells["a"].name == cells["b"].name
    assert cells["a"].name != cells["c"].name
    adapters = {name: (cell / ADAPTER).read_bytes() for name, cell in cells.items()}
    assert adapters["a"] == adapters["b"]
    assert adapters["a"] != adapters["c"]
    assert rows_of(cells["a"]) == rows_of(cells["b"])
    assert read_json(cells["a"] / "result.json")["metrics"].keys() == read_json(cells["c"] / "result.json")["metrics"].keys()


def test_a_finished_cell_does_nothing_again(untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = freeze(untrained_model, tmp_path)["train"]
    run_cell(cell)
    before = {path: path.read_bytes() for path in cell.rglob("*") if path.is_file()}
    monkeypatch.setattr(LlavaBackbone, "load", None)

    assert run_cell(cell) == 0

    assert {path: path.read_bytes() for path in cell.rglob("*") if path.is_file()} == before


def test_a_new_grader_grades_stored_answers_without_a_model(untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = freeze(untrained_model, tmp_path)["train"]
    run_cell(cell)
    answers = [row["answer"] for row in rows_of(cell)]
    exact = scores_of(cell)["graders"]["exact"]
    graders = {"exact": {"_target_": "medvlm_dpo.evaluation.graders.exact.grader"}, "strict": STRICT}
    monkeypatch.setattr(LlavaBackbone, "load", None)

    assert freeze(untrained_model, tmp_path, evaluation={"graders": graders})["train"] == cell
    assert run_cell(cell) == 0

    assert list((cell / "evaluations").iterdir()) == [next((cell / "evaluations").iterdir())]
    assert scores_of(cell)["graders"].keys() == {"exact", "strict"}
    assert scores_of(cell)["graders"]["exact"] == exact
    assert [row["answer"] for row in rows_of(cell)] == answers
    assert {"exact_score", "strict_score"} <= rows_of(cell)[0].keys()


def test_a_new_evaluation_takes_the_adapter_and_never_trains(
    untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = freeze(untrained_model, tmp_path, trainer={"learning_rate": 1e-2})["train"]
    run_cell(cell)
    monkeypatch.setattr(PreferenceModule, "training_step", None)
    questions = {"_target_": "medvlm_dpo.data.phantom.source.PhantomQuestions", "data_class": "public", "split": "test", "num_questions": 4}

    assert freeze(untrained_model, tmp_path, trainer={"learning_rate": 1e-2}, evaluation={"questions": questions})["train"] == cell
    assert run_cell(cell) == 0

    few, many = sorted((rows_of(cell, place) for place in range(2)), key=len)
    assert [row["answer"] for row in few] == [row["answer"] for row in many[:4]], "the adapter, read back, answers as it did"


def test_dropped_rows_of_an_evaluation_are_listed(untrained_model: Path, tmp_path: Path) -> None:
    cell = freeze(untrained_model, tmp_path, evaluation={"questions": write_user_questions(tmp_path / "asked")})["start"]
    run_cell(cell)

    (dropped,) = scores_of(cell)["dropped_records"]
    assert dropped.endswith("questions.jsonl, line 2, id 2: gpt4_answer is empty")


@pytest.mark.parametrize("lost", ["scores.json", "predictions.parquet"])
def test_a_lost_file_of_answers_is_made_anew_without_training(
    untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    cell = freeze(untrained_model, tmp_path)["train"]
    run_cell(cell)
    answers = rows_of(cell)
    next(cell.glob(f"evaluations/*/{lost}")).unlink()
    monkeypatch.setattr(PreferenceModule, "training_step", None)
    assert not is_finished(cell)

    assert run_cell(cell) == 0

    assert is_finished(cell)
    assert rows_of(cell) == answers


@pytest.mark.parametrize("content", [None, b"cut off"])
def test_a_lost_adapter_is_told_as_such(untrained_model: Path, tmp_path: Path, content: bytes | None) -> None:
    cell = freeze(untrained_model, tmp_path)["train"]
    run_cell(cell)
    next(cell.glob("evaluations/*/scores.json")).unlink()
    (cell / ADAPTER).unlink()
    if content is not None:
        (cell / ADAPTER).write_bytes(content)

    with pytest.raises(InputError, match=r"adapter_model\.safetensors is missing or damaged .*; put it back, or remove the cell's folder"):
        run_cell(cell)


# --- changed input -----------------------------------------------------------------------------------------------------

PAIRS: list[tuple[str, str | None]] = [(f"Yes, {place}.", f"No, {place}.") for place in range(6)]


def test_data_changed_after_freezing_is_refused(untrained_model: Path, tmp_path: Path) -> None:
    data = write_user_pairs(tmp_path / "user", PAIRS)
    cell = freeze(untrained_model, tmp_path / "outputs", data=data)["train"]
    file = Path(data["path"])
    file.write_text(file.read_text().replace("Yes, 1.", "Maybe, 1."))

    with pytest.raises(InputError, match="data: its files changed after this cell was frozen"):
        run_cell(cell)

    assert not (cell / "result.json").exists()
    assert not (cell / "checkpoint").exists()
    assert main([str(cell)]) == 1
    assert read_cell(cell).status.state == "failed"
    assert "changed after this cell was frozen" in read_cell(cell).status.message


def test_weights_changed_after_freezing_are_refused(untrained_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in untrained_model.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    cell = freeze(model, tmp_path / "outputs")["start"]
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "model.safetensors").write_bytes(bytes(content))

    with pytest.raises(InputError, match="model: its files changed"):
        run_cell(cell)


def test_questions_changed_after_freezing_are_refused(untrained_model: Path, tmp_path: Path) -> None:
    cell = freeze(untrained_model, tmp_path)["start"]
    file = next((cell / "evaluations").glob("*/evaluation.yaml"))
    file.write_text(file.read_text().replace("num_questions: 6", "num_questions: 5"))

    with pytest.raises(InputError, match="the questions or their images changed"):
        run_cell(cell)


# --- exit codes --------------------------------------------------------------------------------------------------------


def test_exit_code_0_and_status(untrained_model: Path, tmp_path: Path) -> None:
    cell = freeze(untrained_model, tmp_path)["start"]

    assert main([str(cell)]) == 0

    status = read_cell(cell).status
    assert (status.state, status.attempt, status.pid) == ("finished", 1, os.getpid())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", str(status.ended_at))


def test_exit_code_1_when_the_run_cannot_be_trusted(untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = freeze(untrained_model, tmp_path)["train"]

    def stop(self: PreferenceModule, item: Any, batch_idx: int) -> None:
        raise TrainingStoppedError("step 0: the gradient norm is nan")

    monkeypatch.setattr(PreferenceModule, "training_step", stop)

    assert main([str(cell)]) == 1
    assert read_cell(cell).status.message == "step 0: the gradient norm is nan"


def test_a_bug_is_written_down_and_raised(untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = freeze(untrained_model, tmp_path)["train"]

    def bug(self: PreferenceModule, item: Any, batch_idx: int) -> None:
        raise KeyError("unexpected")

    monkeypatch.setattr(PreferenceModule, "training_step", bug)

    with pytest.raises(KeyError):
        main([str(cell)])
    assert (read_cell(cell).status.state, read_cell(cell).status.message) == ("failed", "KeyError: 'unexpected'")


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_exit_code_2_for_a_wrong_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "usage: python -m medvlm_dpo.runner CELL_FOLDER" in capsys.readouterr().err


def test_exit_code_2_for_a_folder_that_is_no_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing")]) == 2
    assert "is no cell: it has no cell.yaml" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_exit_code_130_then_the_cell_goes_on(
    untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    trainer = {"checkpoint_every_steps": 1, "max_steps": 3}
    straight = freeze(untrained_model, tmp_path / "straight", trainer=trainer)["train"]
    run_cell(straight)
    cell = freeze(untrained_model, tmp_path / "killed", trainer=trainer)["train"]
    handler = signal.getsignal(number)
    inner = PreferenceModule.training_step

    def interrupted(self: PreferenceModule, item: Any, batch_idx: int) -> None:
        if item.index == 2:
            os.kill(os.getpid(), number)
        inner(self, item, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(PreferenceModule, "training_step", interrupted)
        assert main([str(cell)]) == 130
    assert signal.getsignal(number) == handler
    assert read_cell(cell).status.state == "interrupted"
    assert not (cell / "result.json").exists()

    assert main([str(cell)]) == 0

    assert read_json(cell / "result.json")["training"]["resumed_after_step"] == 2
    assert read_cell(cell).status.attempt == 2
    assert (cell / ADAPTER).read_bytes() == (straight / ADAPTER).read_bytes()
    assert metrics_of(cell) == metrics_of(straight)
    assert rows_of(cell) == rows_of(straight)


@pytest.mark.slow
def test_the_command_itself_interrupted_and_given_again(untrained_model: Path, tmp_path: Path) -> None:
    cell = freeze(untrained_model, tmp_path, trainer={"max_steps": 3000, "checkpoint_every_steps": 1})["train"]
    command = [sys.executable, "-m", "medvlm_dpo.runner", str(cell)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(cell.glob("checkpoint/step-*")) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert read_cell(cell).status.state == "interrupted"

    start = next(folder for folder in cell.parent.iterdir() if folder != cell)
    done = subprocess.run([*command[:-1], str(start)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    wrong = subprocess.run([*command[:-1], str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (wrong.returncode, "Traceback" in wrong.stderr) == (2, False)
