"""Every kind of mistake on the command line or in a yaml: exit 2, one sentence per problem, no traceback, nothing written."""

import subprocess
import sys
from pathlib import Path

import pytest
from launch_world import DEFAULTS, World

from launch.compose import compose_cells
from medvlm_dpo.errors import InputError


@pytest.fixture
def problems(world: World, monkeypatch: pytest.MonkeyPatch):
    """Composes in this process and returns the problems."""
    monkeypatch.chdir(world.folder)

    def found(*arguments: str) -> tuple[str, ...]:
        named = {argument.split("=")[0] for argument in arguments}
        defaults = [default for default in DEFAULTS if default.split("=")[0] not in named]
        with pytest.raises(InputError) as caught:
            compose_cells(["--config-dir", "conf", *defaults, *arguments])
        return caught.value.problems

    return found


def test_the_words_of_a_card_are_offered_to_nobody(problems, world: World) -> None:
    (world.folder / "conf" / "loss" / "worded.yaml").write_text("colour: red\ncard: {title: words}\n", encoding="utf-8")
    assert problems("loss=worded", "loss.xxx=1") == ("loss.xxx: loss=worded has no key 'xxx'; choose from colour",)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["loss=steeep"], ["loss: there is no 'steeep'; did you mean steep? (choices: "]),
        (["losss=steep"], ["losss: there is no key or group 'losss'; did you mean loss?"]),
        (["loss.betta=1"], ["loss.betta: loss=steep has no key 'betta'; did you mean beta?"]),
        (["trainr.max_steps=1"], ["trainr.max_steps: there is no key or group 'trainr'; did you mean trainer?"]),
        (["loss.betta=1", "data.pth=x"], ["loss.betta: ", "data.pth: data=pairs has no key 'pth'; did you mean path?"]),
        (["-m", "loss=steep,flat", "loss.beta=0.1,0.2"], ["loss.beta: loss=flat has no key 'beta'"]),
        (["-m", "loss=steep,flatt", "model=tinny"], ["model: there is no 'tinny'; did you mean tiny?"]),
        (["-m", "loss=stepp,flatt"], ["loss: there is no 'stepp'", "loss: there is no 'flatt'"]),
        (["loss.beta=[1"], ["loss.beta=[1: cannot be read"]),
        (["loss"], ["loss: cannot be read"]),
        (["seed=abc"], ["seed: expects a whole number, got 'abc'"]),
        (["seed=1.5"], ["seed: expects a whole number, got '1.5'"]),
        (["seed=-1", "check=ful", "sweep_name=a/b"], ["check: 'ful' is neither fast nor full", "seed: expects", "sweep_name: 'a/b'"]),
        (["sweep_name=-x"], ["sweep_name: '-x' names a folder; use letters"]),
        (["data.path=???"], ["data.path: a value is required and has no default; give data.path=..."]),
        (["data.path=???", "evaluation.name=${data.path}"], ["data.path: a value is required and has no default"]),
        (["model=???"], ["model: a value is required"]),
        (["data.path=${nowhere.x}"], ["data.path: its reference cannot be resolved (Interpolation key 'nowhere.x' not found)"]),
        (["data.path=a,b"], ["data.path=a,b: several values make a grid; add -m"]),
        (["loss=steep", "loss=flat"], ["loss: given more than once"]),
        (["adapter=null"], ["Config group override must be a string or a list"]),
        (["hydra/launcher=slurmm"], ["hydra/launcher: there is no 'slurmm'"]),
        (["hydra.launcher.n_parallel=0", "hydra.launcher.threads=no"], ["hydra.launcher.n_parallel: ", "hydra.launcher.threads: "]),
        (["--multirunn"], ["--multirunn: there is no such option; did you mean --multirun?"]),
        (["experiment=demmo"], ["experiment: there is no 'demmo'; did you mean demo?"]),
    ],
)
def test_one_sentence_per_problem(problems, arguments: list[str], says: list[str]) -> None:
    found = problems(*arguments)
    assert len(found) == len(says), found
    for sentence, beginning in zip(found, says, strict=True):
        assert sentence.startswith(beginning)
        assert "\n" not in sentence


def test_key_of_one_swept_loss_is_no_mistake(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra alone would try the key on the default loss, which lacks it, and refuse."""
    monkeypatch.chdir(world.folder)
    others = [default for default in DEFAULTS if not default.startswith("loss")]
    (cell,) = compose_cells(["--config-dir", "conf", *others, "-m", "loss=flat", "loss.slope=0.25"])
    assert cell["loss"] == {"slope": 0.25}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# @package _global_\nseeed: 3\n", "seeed"),
        ("# @package _global_\nseed: many\n", "seed"),
        ("# @package _global_\nseed: [1\n", "yaml"),
        ("# @package _global_\ndefaults:\n  - override /adapter: loraa\n", "adapter: there is no 'loraa'; did you mean lora?"),
    ],
)
def test_mistakes_in_a_yaml(problems, world: World, text: str, says: str) -> None:
    file = world.folder / "conf/experiment/wrong.yaml"
    file.parent.mkdir()
    file.write_text(text)
    (sentence,) = problems("experiment=wrong")
    assert says in sentence
    assert "\n" not in sentence


def test_a_group_overridden_from_within_another_needs_its_place(problems, world: World) -> None:
    (world.folder / "conf/loss/misplaced.yaml").write_text("defaults: [steep, override /adapter: lora, _self_]\n", encoding="utf-8")
    expected = "loss/misplaced: `override /adapter` looks for adapter inside loss; it must read `override /adapter@_global_.adapter: ...`"
    assert problems("loss=misplaced") == (expected,)


def test_a_list_in_place_of_named_values_is_told(problems, world: World) -> None:
    (world.folder / "conf/loss/weighed.yaml").write_text("weights: {one: 1.0, other: 1.0}\n", encoding="utf-8")
    expected = "loss.weights: expects names with their values, got a list; give each by its name, loss.weights.NAME=..."
    assert problems("loss=weighed", "loss.weights=[1,1]") == (expected,)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["loss.beta=-1"], "loss.beta must be > 0, got -1"),
        (["-m", "loss.beta=-1,0.1", "seed=0,1"], "loss.beta must be > 0, got -1 [2 of 4 cells, first: "),
        (["-m", "loss=steep,flat", "loss.beta=1,2"], "loss=flat has no key 'beta'"),
        (["--config-dir", "/nowhere/conf"], "'/nowhere/conf' not found"),
        (["paths.output_dir=launch_fakes.py/out"], "launch_fakes.py is a file"),
        (["paths.output_dir=/proc/nowhere"], "paths.output_dir: "),
        (["task.checker=launch_fakes.chek"], "launch_fakes has no 'chek'; did you mean check?"),
        (["task.runner=no_such_module.run", "task.table=nowhere.table"], "nowhere.table does not exist"),
        (["+task.colour=red"], "task.colour: train takes no 'colour'"),
        (["-m", "task=fake_train,fake_evaluate"], "a command has one task"),
        (["-m", "paths.output_dir=a,b"], "paths.output_dir: a command writes into one output folder"),
    ],
)
def test_exit_code_2_and_nothing_written(world: World, arguments: list[str], says: str) -> None:
    done = world.run(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert {file.name for file in world.folder.iterdir()} <= {"conf", "launch_fakes.py", "__pycache__"}


def test_bug_keeps_its_traceback(world: World) -> None:
    done = world.run("task.checker=launch_fakes.bug")
    assert done.returncode == 1
    assert "KeyError: 'a bug in the check'" in done.stderr


def test_unwritable_half_way_leaves_nothing(world: World) -> None:
    """The sweep file comes last; when it cannot be written, the cells written before it are gone again."""
    (world.folder / "outputs").mkdir()
    (world.folder / "outputs/sweeps").write_text("a file where a folder must be")
    done = world.run()
    assert done.returncode == 2
    assert "cannot write" in done.stderr
    assert list((world.folder / "outputs/cells").iterdir()) == []


def test_help_names_groups_tasks_and_examples(world: World) -> None:
    done = world.run("--help")
    assert done.returncode == 0
    for words in ("python run.py -m loss=", "loss: ", "steep", "evaluate", "docs/", "Exit codes"):
        assert words in done.stdout
    assert not world.output.exists()


def test_launch_modules_import_no_torch() -> None:
    modules = "launch.main, launch.tasks, launch.cells, launch.attempt, launch.launcher, medvlm_dpo.governance, medvlm_dpo.config.schema"
    script = f"import {modules}, sys; print(sorted({{'torch', 'transformers', 'pytorch_lightning', 'peft'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]"


def test_installed_package_finds_its_configuration(world: World, tmp_path: Path) -> None:
    """Laid out as in a wheel: no run.py, conf inside the package; and Hydra finds the plugins from another folder."""
    root, site = Path(__file__).parents[2], tmp_path / "site"
    for folder in ("launch", "hydra_plugins", "medvlm_dpo"):
        for file in (root / folder).rglob("*.py"):
            target = site / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(file.read_text())
    for file in (root / "conf").rglob("*.yaml"):
        target = site / "medvlm_dpo" / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text())
    command = ["-c", "import sys; from launch.main import main; sys.exit(main())", *world.command()[2:]]
    environment = {**world.environment(), "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, *command], cwd=world.folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(world.cells()) == 1
