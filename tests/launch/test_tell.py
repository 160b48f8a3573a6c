"""A task that prints what a function says about the composed configurations: one or several, nothing written."""

from textwrap import dedent

import pytest
from launch_world import World, write_choice

from launch.child import tell_checked
from medvlm_dpo.errors import InputError

TELLER = dedent(
    '''
    """Says what it was given."""

    from medvlm_dpo.errors import InputError


    def losses(configs, *, mark: str):
        if mark == "wrong":
            raise InputError(["mark: the first problem", "mark: the second problem"])
        if mark == "bug":
            raise KeyError("a bug in the teller")
        return "\\n".join(f"{mark} {config['choices']['loss']} {config['loss']} {config['seed']}" for config in configs)
    '''
)


@pytest.fixture
def teller(world: World) -> World:
    (world.folder / "tellers.py").write_text(TELLER)
    task = {"_target_": "launch.tasks.tell", "_partial_": True, "function": "tellers.losses", "settings": {"mark": "*"}}
    write_choice(world.folder / "conf", "task/fake_tell", task)
    return world


def test_every_configuration_reaches_the_function_as_it_was_composed(teller: World) -> None:
    """A loss has a `_target_`: it is told, not built."""
    write_choice(teller.folder / "conf", "loss/steep", {"_target_": "nowhere.steep", "_partial_": True, "beta": 0.1})
    done = teller.run("-m", "loss=steep,flat", "seed=3", "task.settings.mark=here", task="fake_tell")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "here steep {'_partial_': True, '_target_': 'nowhere.steep', 'beta': 0.1} 3",
        "here flat {'slope': 0.5} 3",
    ]
    assert not teller.output.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["task.settings.mark=wrong"], "error: mark: the first problem\nerror: mark: the second problem\n"),
        (["+task.settings.colour=red"], "error: task.settings.colour: losses takes no 'colour'; choose from mark\n"),
        (["+task.settings.configs=3"], "error: task.settings.configs: losses takes no 'configs'; choose from mark\n"),
        (["task.settings.mark=3"], "error: task.settings.mark: losses expects text, got 3"),
        (["~task.settings.mark"], "error: task.settings.mark is missing: losses needs it"),
        (["task.function=tellers.loses"], "error: _target_: tellers has no 'loses'; did you mean losses?"),
        (["cell=some"], "error: cell: only task=evaluate takes a finished cell"),
    ],
)
def test_what_does_not_fit_is_refused(teller: World, arguments: list[str], says: str) -> None:
    done = teller.run(*arguments, task="fake_tell")
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert done.stdout == ""


def test_a_bug_of_the_function_keeps_its_traceback(teller: World) -> None:
    done = teller.run("task.settings.mark=bug", task="fake_tell")
    assert done.returncode == 1
    assert "KeyError: 'a bug in the teller'" in done.stderr


def test_the_catalogue_is_described_and_nothing_written(world: World) -> None:
    done = world.run("-m", "loss=dpo,sft", "trainer=default", task="describe")
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines() if line[:4] in ("dpo:", "sft:")] == ["dpo", "sft"]
    assert "reference=adapter_off: chosen, rejected" in done.stdout
    assert not world.output.exists()


def test_settings_are_compared_before_anything_is_told() -> None:
    def problems(**settings: object) -> tuple[str, ...]:
        with pytest.raises(InputError) as caught:
            tell_checked("medvlm_dpo.describe.describe", [], settings)
        return caught.value.problems

    assert problems(width="wide") == ("task.settings.width: describe expects a whole number, got 'wide'",)
    assert len(problems(widths=80)) == 2
    assert tell_checked("medvlm_dpo.describe.describe", [], {"width": 80}) == ""
