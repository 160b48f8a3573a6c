"""One process per cell folder: whoever holds the kernel's lock on the folder may write in it. A dead process holds nothing."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Tries to become the one process that works in a folder, until the block ends or the process dies.

    Yields:
        True when the claim was granted; False when another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _lock(handle)
    finally:
        os.close(handle)


def is_claimed(folder: Path) -> bool:
    """Whether some process, maybe of another command, works in this folder now."""
    with claim(folder) as granted:
        return not granted


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems cannot lock folders: there one command at a time is the user's care
        return True
    return True
