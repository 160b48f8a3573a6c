"""What the tests of objectives share: modules as a user would write them, and property tests that are the same on every machine."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: how long an example takes says something about the machine. Derandomised: the same examples in every run.
settings.register_profile("objectives", deadline=None, derandomize=True)
settings.load_profile("objectives")

COUNTER = itertools.count()
HEADER = """
from typing import NamedTuple
import torch
from torch import Tensor
from medvlm_dpo.vocab import ObjectiveOutput, PerExample
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module into a folder on the path and gives its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str) -> str:
        name = f"user_losses_{next(COUNTER)}"
        (tmp_path / f"{name}.py").write_text(HEADER + source, encoding="utf-8")
        return name

    return write
