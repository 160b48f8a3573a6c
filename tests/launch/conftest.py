"""The small world as a fixture."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for launch_world: test folders are no packages

from launch_world import World, make_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A fresh world."""
    made = make_world(tmp_path)
    yield made
    made.end_everything()
