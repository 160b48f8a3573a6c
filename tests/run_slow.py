"""Runs the slow tests: `python tests/run_slow.py --minutes 50`.

The order of the test files is drawn from the commit hash, so that a limited time still reaches every file within a few commits.
All tests share one process, so that torch and the built-in models are loaded once. What the time did not reach is listed. A test
that fails is run again in a process of its own; one that then passes is reported as flaky, and flaky is a failure too.
"""

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = [f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}", "-q"]
SELECTION = ["-m", "slow and not gpu", "--durations=10", "--durations-min=5"]


class SlowRun:
    """A pytest plugin: shuffles files, stops when the time is over, remembers what failed.

    Args:
        seed: text the order is drawn from.
        budget_s: seconds after which no further test starts.
    """

    def __init__(self, seed: str, budget_s: float) -> None:
        self.seed = seed
        self.deadline = time.monotonic() + budget_s
        self.addresses: dict[str, str] = {}  # node id -> absolute file and test: node ids outside the root cannot be run again
        self.failed: list[str] = []
        self.left_out: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Shuffles whole files: tests of one file share its fixtures."""
        files = sorted({item.nodeid.split("::")[0] for item in items})
        random.Random(self.seed).shuffle(files)
        items.sort(key=lambda item: files.index(item.nodeid.split("::")[0]))
        self.addresses = {item.nodeid: f"{item.path}::{item.nodeid.split('::', 1)[1]}" for item in items}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """True, which means "done", for a test that the time no longer reaches."""
        if time.monotonic() < self.deadline:
            return None
        self.left_out.append(item.nodeid)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remembers failures of set-up, call and tear-down alike, once each."""
        if report.failed and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Lists what was left out above pytest's closing line."""
        terminalreporter.section(f"order drawn from {self.seed}; {len(self.left_out)} left out")
        for nodeid in self.left_out:
            terminalreporter.line(f"left out: {nodeid}")


def commit_hash() -> str:
    """The commit of the tree, or a fixed word outside a clone."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no-commit"


def passes_alone(address: str) -> bool:
    """Runs one test in a fresh process."""
    command = [sys.executable, "-m", "pytest", *CONFIGURATION, "--no-header", "--tb=no", address]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def main(arguments: list[str]) -> int:
    """Runs the tests; 0 when all that ran passed at the first go."""
    parser = argparse.ArgumentParser(description="run the slow tests within a time")
    parser.add_argument("--minutes", type=float, default=50.0, help="start no further test after this many minutes")
    parser.add_argument("--seed", default=commit_hash(), help="text the order is drawn from; default: the commit hash")
    parser.add_argument("paths", nargs="*", default=[str(ROOT / "tests")], help="test files or folders")
    options = parser.parse_args(arguments)
    slow = SlowRun(options.seed, 60 * options.minutes)
    exit_code = int(pytest.main([*CONFIGURATION, *SELECTION, *options.paths], plugins=[slow]))
    for nodeid in slow.failed:
        flaky = passes_alone(slow.addresses[nodeid])
        print(f"FLAKY: {nodeid} failed, then passed: a defect to mend" if flaky else f"FAILED twice: {nodeid}")
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
