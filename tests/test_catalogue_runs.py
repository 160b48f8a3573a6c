"""Every loss end to end, by the command a user gives: `python run.py -m 'loss=glob(*)' trainer.max_steps=20`, on fewer pairs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medvlm_dpo.config.catalogue import catalogue
from medvlm_dpo.results.ledger import read_sweep

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["data.num_pairs=64", "data.num_validation_pairs=16", "evaluation.questions.num_questions=20", "hydra.launcher.n_parallel=2"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_loss_runs_end_to_end_and_the_table_says_what_it_needed_and_cost(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "run.py",
        "-m",
        "loss=glob(*)",
        "trainer.max_steps=20",
        *SMALL,
        "sweep_name=all",
        f"paths.output_dir={tmp_path}",
    ]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    cells = {cell.choices["loss"]: cell for cell in read_sweep(tmp_path, "all").cells if cell.choices.get("loss")}
    assert cells.keys() == catalogue().keys()
    for name, cell in cells.items():
        assert cell.result["training"]["steps"] == 20, name
        assert cell.evaluations, name
        assert cell.config["corruption"] is None or cell.choices["corruption"] == catalogue()[name].corruption
    section = done.stdout.partition("What each loss needed and cost")[2]
    assert catalogue().keys() <= {line.split()[0] for line in section.splitlines() if line.strip()}
