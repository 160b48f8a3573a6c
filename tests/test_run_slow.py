"""The runner of the slow tests: order, time limit, flaky tests."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.run_slow import SlowRun

ROOT = Path(__file__).resolve().parents[1]

FLAKY = """
import pathlib, pytest
MARK = pathlib.Path(__file__).with_name("was_here")

@pytest.mark.slow
def test_flaky():
    if not MARK.exists():
        MARK.touch()
        raise AssertionError("the first time")

@pytest.mark.slow
def test_broken():
    assert False

@pytest.mark.slow
def test_good(): pass

def test_fast(): raise AssertionError("a fast test has no place here")
"""


def run_slow(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tests/run_slow.py"), *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )


@pytest.mark.slow
def test_a_failure_that_passes_the_second_time_is_reported_as_flaky_and_still_fails(tmp_path: Path):
    (tmp_path / "test_sample_flaky.py").write_text(FLAKY)
    done = run_slow("--seed", "x", str(tmp_path))
    assert done.returncode == 1
    assert "test_flaky failed, then passed: a defect to mend" in done.stdout
    assert next(line for line in done.stdout.splitlines() if line.startswith("FAILED twice")).endswith("::test_broken")
    assert "2 failed, 1 passed, 1 deselected" in done.stdout


def test_what_the_time_does_not_reach_is_listed(tmp_path: Path):
    (tmp_path / "test_sample_late.py").write_text("import pytest\n\n@pytest.mark.slow\ndef test_late(): assert False\n")
    done = run_slow("--minutes", "0", str(tmp_path))
    assert "1 left out" in done.stdout
    assert "test_sample_late.py::test_late" in done.stdout
    assert "failed" not in done.stdout


def order(seed: str) -> list[str]:
    items = [
        SimpleNamespace(nodeid=f"tests/test_{file}.py::test_{number}", path=f"tests/test_{file}.py")
        for file in range(8)
        for number in range(2)
    ]
    SlowRun(seed, budget_s=0).pytest_collection_modifyitems(items)
    return [item.nodeid for item in items]


def test_the_seed_decides_the_order_of_files_and_tests_of_one_file_stay_together():
    assert order("one commit") == order("one commit")
    assert order("one commit") != order("another commit")
    assert sorted(order("one commit")) == sorted(order("another commit"))
    files = [nodeid.split("::")[0] for nodeid in order("one commit")]
    assert files[::2] == files[1::2]
