"""What the tests of the cache share."""

import os
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def with_umask() -> Iterator[Callable[[int], None]]:
    """Sets the umask of this process until the end of the test."""
    before = os.umask(0)
    os.umask(before)
    yield lambda umask: (os.umask(umask), None)[1]
    os.umask(before)
