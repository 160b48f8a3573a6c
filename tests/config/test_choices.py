"""Every choice of every group composes, and its keys fit what it names."""

from pathlib import Path
from typing import Any

import pytest

from launch.compose import compose_cells
from medvlm_dpo.config.catalogue import conf_folder
from medvlm_dpo.config.instantiate import check_targets
from medvlm_dpo.errors import InputError


def every_choice() -> list[tuple[str, str]]:
    conf = conf_folder()
    files = [file.relative_to(conf).with_suffix("") for file in sorted(conf.rglob("*.yaml")) if file.parent != conf]
    return [(str(file.parent), file.name) for file in files]


def compose(*arguments: str) -> dict[str, Any]:
    """Composes one cell; values without a default (a user's paths) get a word."""
    try:
        (cell,) = compose_cells(list(arguments))
    except InputError as error:
        missing = [problem.split(":")[0] for problem in error.problems if "a value is required" in problem]
        (cell,) = compose_cells([*arguments, *(f"{key}=public" for key in missing)])
    return cell


@pytest.mark.parametrize(("group", "choice"), every_choice())
def test_choice_composes_and_fits_its_target(group: str, choice: str) -> None:
    cell = compose(f"{group}={choice}")
    if not group.startswith("hydra/"):
        assert cell["choices"][group] == choice
    assert check_targets(cell, ignore=("loss",)) == []  # positional parameters of losses are tensors: objectives checks them


def test_defaults_compose_to_plain_values() -> None:
    cell = compose()
    assert type(cell) is dict
    assert type(cell["trainer"]) is dict
    assert cell["seed"] == 0
    assert Path(cell["paths"]["output_dir"]) == Path.cwd() / "outputs"


def test_output_folder_by_environment_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEDVLM_OUTPUT_DIR", str(tmp_path))
    assert compose()["paths"]["output_dir"] == str(tmp_path)


def test_no_other_yaml_reads_the_environment() -> None:
    readers = [file for file in conf_folder().rglob("*.yaml") if "oc.env" in file.read_text()]
    assert [file.parent.name for file in readers] == ["paths"]


def test_every_experiment_states_its_question() -> None:
    for file in conf_folder().glob("experiment/*.yaml"):
        assert file.read_text().splitlines()[1].startswith("# Question: "), file.name
