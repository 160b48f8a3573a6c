"""DPO with the default settings really learns and does not ruin the answers; controls that cannot learn do not pass for learning."""

import subprocess
import sys
from pathlib import Path

import pytest

from medvlm_dpo.results.ledger import CellRecord, read_sweep

ROOT = Path(__file__).resolve().parent.parent
BASE_TOLERANCE = 0.02


def run(output: Path, name: str, *overrides: str) -> None:
    command = [
        sys.executable,
        "run.py",
        "-m",
        f"paths.output_dir={output}",
        f"sweep_name={name}",
        "hydra.launcher.n_parallel=2",
        *overrides,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def learned(cell: CellRecord) -> bool:
    """The line that separates training from its controls: training loss, and held-out reward margin (beta 0.1, so 0.3 is 3 nats)."""
    loss, margin = cell.metric("train/loss"), cell.metric("validation/reward_margin")
    assert loss is not None
    assert margin is not None
    return loss < 0.6 and margin >= 0.3


def exact_match(cell: CellRecord) -> float:
    (evaluation,) = cell.evaluations.values()
    value = evaluation.value("exact", "exact_match")
    assert value is not None
    return value


@pytest.mark.slow
def test_dpo_learns_and_controls_do_not(tmp_path: Path) -> None:
    run(tmp_path, "trained", "loss=dpo", "seed=0,1,2")
    run(tmp_path, "rate_zero", "loss=dpo", "trainer.learning_rate=0")
    run(tmp_path, "flipped", "loss=dpo", "data.flip_fraction=0.5")
    trained = read_sweep(tmp_path, "trained")
    (start,) = trained.starts
    for cell in trained.cells:
        assert learned(cell), cell.result["metrics"]
        assert exact_match(cell) >= exact_match(start) - BASE_TOLERANCE
    assert not any(learned(cell) for name in ("rate_zero", "flipped") for cell in read_sweep(tmp_path, name).cells)
    (untouched,) = read_sweep(tmp_path, "rate_zero").cells
    assert exact_match(untouched) == exact_match(start)
