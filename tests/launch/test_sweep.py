"""The life of a sweep, driven from outside like a user would, with a runner that costs nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch_world import World, write_choice


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.suffix == ".json" else yaml.safe_load(file.read_text())


def succeed(world: World, *arguments: str, task: str = "fake_train") -> str:
    done = world.run(*arguments, task=task)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_grid_becomes_cells_starts_and_a_sweep(world: World) -> None:
    shown = succeed(world, "-m", "loss=steep,flat", "seed=0,1")
    cells, starts = world.cells(), world.cells("start")
    assert sorted("-".join(cell.name.split("-")[:4]) for cell in cells) == [
        f"tiny-{loss}-pairs-s{seed}" for loss in ("flat", "steep") for seed in (0, 1)
    ]
    assert len(starts) == 1
    (sweep_file,) = world.output.glob("sweeps/*/sweep.json")
    sweep = read(sweep_file)
    assert sorted(sweep["cells"]) == [cell.name for cell in cells]
    assert sweep["starts"] == [starts[0].name]
    assert f"TABLE of {sweep['name']}" in shown
    for cell in (*cells, *starts):
        assert read(cell / "status.json")["state"] == "finished"
        assert read(cell / "cell.yaml")["id"] == cell.name
        assert all(read(file)["schema_version"] == 1 for file in (cell / "cell.yaml", cell / "status.json"))
    assert {file.name for file in world.folder.iterdir()} == {"conf", "launch_fakes.py", "outputs"}, "no folder of Hydra's own"


def test_what_cells_share_is_computed_once_before_them(world: World) -> None:
    shown = succeed(world, "-m", "loss=steep,flat", "seed=0,1", "hydra.launcher.n_parallel=2", "hydra.launcher.threads=1")
    before, _, after = shown.partition("precomputed for 4 cells with 2 threads")
    assert "starts (1 of" not in before
    assert "starts (1 of" in after
    assert "precomputed" not in succeed(world, "-m", "loss=steep,flat", "seed=0,1"), "nothing is left to do"
    assert "precomputed for 1 cells" in succeed(world, "loss=steep", "seed=2"), "only for those that are left"


def test_a_fault_in_what_comes_first_stops_no_cell(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECOMPUTE", "raise")
    shown = succeed(world)
    assert "each computes its own" in shown
    assert "a bug in what comes first" in shown
    assert read(world.cells()[0] / "status.json")["state"] == "finished"


def test_driver_imports_no_torch(world: World) -> None:
    assert "torch imported: False" in succeed(world)


def test_same_command_trains_nothing_twice(world: World) -> None:
    first = succeed(world, "-m", "seed=0,1")
    again = succeed(world, "seed=0,1", "-m")
    assert again.count("skipped: finished") == 3
    assert first.partition("TABLE")[2] == again.partition("TABLE")[2], "the same sweep"
    assert len(list(world.output.glob("sweeps/*"))) == 1
    assert all((cell / "runs.txt").read_text().count("\n") == 1 for cell in world.cells())


def test_call_without_m_is_a_sweep_of_one(world: World) -> None:
    succeed(world, "seed=4")
    (cell,) = world.cells()
    (sweep_file,) = world.output.glob("sweeps/*/sweep.json")
    assert read(sweep_file)["cells"] == [cell.name]


def test_cell_in_two_sweeps_exists_once(world: World) -> None:
    succeed(world, "-m", "seed=0,1", "sweep_name=wide")
    succeed(world, "seed=1", "sweep_name=narrow")
    wide, narrow = (set(read(world.output / "sweeps" / name / "sweep.json")["cells"]) for name in ("wide", "narrow"))
    assert narrow < wide
    assert len(world.cells()) == 2
    assert all((cell / "trained.txt").read_text() == "once\n" for cell in world.cells())


def test_named_sweep_grows(world: World) -> None:
    succeed(world, "loss=steep", "sweep_name=mine")
    succeed(world, "loss=flat", "sweep_name=mine")
    assert len(read(world.output / "sweeps/mine/sweep.json")["cells"]) == 2


def test_machine_settings_find_the_finished_cell(world: World) -> None:
    succeed(world)
    shown = succeed(world, "trainer.micro_batch_size=1", "hydra.launcher.threads=1", "check=full")
    assert shown.count("skipped: finished") == 2


def test_edited_data_is_another_cell(world: World) -> None:
    data = world.folder / "pairs.txt"
    data.write_text("one")
    succeed(world, "data.path=pairs.txt")
    moved = world.folder / "elsewhere.txt"
    data.rename(moved)
    assert "skipped: finished" in succeed(world, "data.path=elsewhere.txt"), "a moved file is the same data"
    moved.write_text("two")
    succeed(world, "data.path=elsewhere.txt")
    assert len(world.cells()) == 2


def test_new_evaluation_and_new_grader_train_nothing(world: World) -> None:
    succeed(world)
    succeed(world, "evaluation=exam")
    (cell,) = world.cells()
    assert sorted(folder.name.split("-")[0] for folder in (cell / "evaluations").iterdir()) == ["exam", "quiz"]
    exam = {"name": "exam", "graders": {"strict": {"version": "2"}}, "questions": {"split": "exam"}}
    write_choice(world.folder / "conf", "evaluation/exam", exam)
    succeed(world, "evaluation=exam")
    (scores,) = cell.glob("evaluations/exam-*/scores.json")
    assert set(read(scores)["graders"]) == {"exact", "strict"}, "graders asked for earlier stay"
    assert (cell / "trained.txt").read_text() == "once\n"
    write_choice(world.folder / "conf", "evaluation/exam", {**exam, "graders": {"strict": {"version": "3"}}})
    succeed(world, "evaluation=exam")
    assert read(scores)["graders"]["strict"]["version"] == "3", "a new version grades again"
    assert "skipped: finished" in succeed(world, "evaluation=exam")


@pytest.mark.parametrize(("behaviour", "says"), [("raise", "the numbers went wrong"), ("die", "SIGKILL"), ("lie", "without a result")])
def test_failed_cell_is_a_failure_and_the_others_go_on(world: World, behaviour: str, says: str) -> None:
    done = world.run("-m", f"trainer.behaviour={behaviour},work")
    assert done.returncode == 1
    assert says in done.stdout
    assert "running tiny-steep" in done.stdout, "the last lines of its log"
    states = {read(cell / "cell.yaml")["config"]["trainer"]["behaviour"]: read(cell / "status.json")["state"] for cell in world.cells()}
    assert states == {behaviour: "failed", "work": "finished"}
    assert says in next(read(cell / "status.json")["message"] for cell in world.cells() if read(cell / "status.json")["state"] == "failed")


def test_failed_cell_is_tried_again(world: World) -> None:
    assert world.run("trainer.behaviour=refuse").returncode == 1
    assert world.run("trainer.behaviour=refuse").returncode == 1
    (cell,) = world.cells()
    status = read(cell / "status.json")
    assert (status["attempt"], status["message"]) == (2, "data: record 7 is broken")


def test_stale_cells_are_skipped_and_named(world: World) -> None:
    succeed(world)
    (cell,) = world.cells()
    document = read(cell / "cell.yaml")
    document["code"]["hash"] = "0" * 64
    (cell / "cell.yaml").write_text(yaml.safe_dump(document))
    shown = succeed(world)
    assert f"stale: {cell.name}" in shown
    assert (cell / "trained.txt").read_text() == "once\n"


def test_parallel_cells_share_the_cores(world: World) -> None:
    succeed(world, "-m", "seed=0,1,2", "hydra.launcher.n_parallel=2", "hydra.launcher.threads=3")
    assert {read(cell / "result.json")["threads"] for cell in world.cells()} == {"3"}
    assert {read(cell / "status.json")["state"] for cell in world.cells()} == {"finished"}


def test_frozen_paths_do_not_depend_on_the_present_folder(world: World) -> None:
    (world.folder / "pairs.txt").write_text("one")
    succeed(world, "data.path=pairs.txt")
    (cell,) = world.cells()
    config = read(cell / "cell.yaml")["config"]
    assert config["data"]["path"] == str(world.folder / "pairs.txt")
    assert config["model"]["checkpoint"] == "builtin:tiny"


class TestEvaluate:
    def test_grades_the_composed_cell(self, world: World) -> None:
        succeed(world)
        succeed(world, "evaluation=exam", task="fake_evaluate")
        (cell,) = world.cells()
        assert len(list(cell.glob("evaluations/exam-*/scores.json"))) == 1
        assert (cell / "trained.txt").read_text() == "once\n"

    @pytest.mark.parametrize("by_folder", [False, True])
    def test_grades_a_named_cell_and_its_start(self, world: World, by_folder: bool) -> None:
        succeed(world, "loss.beta=0.7", "seed=5")
        (cell,) = world.cells()
        succeed(world, f"cell={cell if by_folder else cell.name}", "evaluation=exam", task="fake_evaluate")
        assert world.cells() == [cell], "no other cell came into being"
        assert all(list(folder.glob("evaluations/exam-*/scores.json")) for folder in (cell, *world.cells("start")))
        assert read(cell / "cell.yaml")["config"]["loss"] == {"beta": 0.7}

    def test_grades_a_named_start(self, world: World) -> None:
        succeed(world)
        (start,) = world.cells("start")
        succeed(world, f"cell={start.name}", "evaluation=exam", task="fake_evaluate")
        assert len(list(start.glob("evaluations/exam-*/scores.json"))) == 1
        assert len(world.cells()) == 1

    def test_refuses_what_was_never_trained(self, world: World) -> None:
        done = world.run("seed=9", task="fake_evaluate")
        assert done.returncode == 2
        assert "task=train" in done.stderr
        assert not world.output.exists()

    def test_refuses_an_unknown_cell(self, world: World) -> None:
        succeed(world)
        (cell,) = world.cells()
        done = world.run(f"cell={cell.name[:-1]}", task="fake_evaluate")
        assert done.returncode == 2
        assert f"did you mean {cell.name}" in done.stderr

    def test_cell_belongs_to_evaluate(self, world: World) -> None:
        done = world.run("cell=x")
        assert done.returncode == 2
        assert "task=evaluate" in done.stderr


def test_own_loss_beside_the_configuration(world: World, tmp_path: Path) -> None:
    own = tmp_path / "mine"
    write_choice(own / "conf", "loss/lopsided", {"_target_": "my_losses.lopsided", "_partial_": True, "tilt": 0.5})
    (own / "my_losses.py").write_text("def lopsided(policy_chosen_logps, *, tilt: float): ...\n")
    checker = "from launch_fakes import *\nfrom medvlm_dpo.config.instantiate import call_target\n"
    checker += "def check(configs, path, full):\n    assert call_target(configs[0]['loss']).keywords == {'tilt': 0.5}\n"
    checker += "    return [CheckedCell(content={'data': 'd', 'model': 'm'}, evaluation_content='q') for _ in configs]\n"
    (world.folder / "strict_check.py").write_text(checker)
    for file in (world.folder / "conf").rglob("*.yaml"):  # everything else as before, in the same folder
        write_choice(own / "conf", str(file.relative_to(world.folder / "conf").with_suffix("")), yaml.safe_load(file.read_text()))
    done = world.run("--config-dir", str(own / "conf"), "loss=lopsided", "task.checker=strict_check.check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert world.cells()[0].name.startswith("tiny-lopsided-pairs-s0-")


class TestCall:
    """task=call: work that makes no cell."""

    @pytest.fixture
    def building(self, world: World) -> World:
        (world.folder / "builders.py").write_text(
            "from pathlib import Path\n\n\ndef build(*, model: str, folder: str, steps: int):\n"
            "    Path(folder, model).write_text('x' * steps)\n    return {'written': steps}\n"
        )
        node = {
            "_target_": "launch.tasks.call",
            "_partial_": True,
            "function": "builders.build",
            "settings": {"folder": ".", "steps": 3},
            "choices": ["model"],
        }
        write_choice(world.folder / "conf", "task/build", node)
        return world

    def test_calls_the_function_with_settings_and_choices(self, building: World) -> None:
        assert "written: 5" in succeed(building, "model=other", "task.settings.steps=5", task="build")
        assert (building.folder / "other").read_text() == "xxxxx"
        assert not building.output.exists()

    def test_misfitting_settings_are_named(self, building: World) -> None:
        done = building.run("+task.settings.stepps=5", "task.settings.steps=many", task="build")
        assert done.returncode == 2
        assert "task.settings.stepps: build takes no 'stepps'; did you mean steps?" in done.stderr
        assert "task.settings.steps: build expects a whole number, got 'many'" in done.stderr
