"""CONTRIBUTING.md shows a loss that is one function and one yaml; here it is taken from the page and run."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from loss_world import A, Golden

from medvlm_dpo.objectives.terms import build_objective, problems_of, weighted_loss

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The files the page shows, written where the page says."""
    blocks = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, flags=re.DOTALL)
    assert [name for name, _ in blocks] == [
        "squared_hinge_loss.py",
        "my_conf/loss/squared_hinge.yaml",
        "scaled_margin_loss.py",
        "my_conf/loss/scaled_margin.yaml",
    ]
    for name, content in blocks:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path


def test_the_example_loss_is_understood_from_its_signature(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(project)
    importlib.invalidate_caches()
    node = yaml.safe_load((project / "my_conf/loss/squared_hinge.yaml").read_text(encoding="utf-8"))
    assert problems_of(node, batch_size=4) == []
    assert len(problems_of({**node, "bata": 0.1}, batch_size=4)) == 1
    objective = build_objective(node, batch_size=2)
    # beta = 0.1; margins (-1 - -3) - (-9 - -7) = 4 and (-1 - -3) - (-30 - -2) = 30 nats: losses (1 - 0.4) ** 2 and 0.
    tensors = {
        "policy_chosen_logps": torch.tensor([-1.0, -1.0]),
        "reference_chosen_logps": torch.tensor([-3.0, -3.0]),
        "policy_rejected_logps": torch.tensor([-9.0, -30.0]),
        "reference_rejected_logps": torch.tensor([-7.0, -2.0]),
    }
    outputs = objective.evaluate(tensors, {}, {}, torch.tensor([0, 1]))
    torch.testing.assert_close(weighted_loss(outputs), torch.tensor([0.36, 0.0]), check_dtype=False)


def test_the_example_of_a_batch_statistic_sees_the_whole_step(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(project)
    importlib.invalidate_caches()
    node = yaml.safe_load((project / "my_conf/loss/scaled_margin.yaml").read_text(encoding="utf-8"))
    assert problems_of(node, batch_size=4) == []
    objective = build_objective(node, batch_size=2)
    chosen, rejected = torch.tensor([-1.0, -4.0]), torch.tensor([-2.0, -1.0])
    measured = {"detached_policy_chosen_mean_logps": chosen, "detached_policy_rejected_mean_logps": rejected}
    statistics, states = objective.estimate(measured, {}, {})
    assert statistics == {"scaled_margin/gap_size": torch.tensor(2.0, dtype=torch.float64)}  # gaps 1 and -3: sizes 1 and 3
    assert states == {}
    second = {"policy_chosen_mean_logps": chosen[1:], "policy_rejected_mean_logps": rejected[1:]}
    outputs = objective.evaluate(second, {}, statistics, torch.tensor([1]))
    torch.testing.assert_close(weighted_loss(outputs), torch.tensor([1.701413]), check_dtype=False)  # softplus(3 / 2)


def test_the_card_and_the_golden_row_of_the_example_hold(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(project)
    importlib.invalidate_caches()
    (card_text,) = re.findall(r"<!-- card -->\n```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    node = yaml.safe_load((project / "my_conf/loss/squared_hinge.yaml").read_text(encoding="utf-8") + card_text)
    assert problems_of(node, batch_size=1) == []
    (row_text,) = re.findall(r"<!-- row -->\n```python\n(.*?)```", PAGE, flags=re.DOTALL)
    ((_, row),) = eval("{" + row_text + "}", {"Golden": Golden, "A": A}).items()
    tensors, facts = row.served()
    (term,) = build_objective(node, batch_size=1).evaluate(tensors, facts, {}, torch.tensor([0]))
    assert term.output.loss.tolist() == pytest.approx(row.expected)
    assert {view: reward.tolist() for view, reward in term.output.rewards.items()} == {
        view: pytest.approx(values) for view, values in row.rewards.items()
    }


@pytest.mark.slow
def test_the_command_on_the_page_trains_with_it(project: Path):
    command = re.findall(r"<!-- command -->\n```\n(.*?)\n```", PAGE)
    assert len(command) == 1
    words = shlex.split(command[0])
    assert words[:2] == ["python", "run.py"]
    short = [
        "trainer.max_steps=2",
        "trainer.batch_size=4",
        "data.num_pairs=8",
        "data.num_validation_pairs=4",
        "evaluation.questions.num_questions=4",
    ]
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *words[2:], *short],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (cell,) = (project / "outputs/cells").glob("phantom_llava-squared_hinge-phantom-s0-*")
    assert (cell / "adapter/adapter_model.safetensors").is_file()
