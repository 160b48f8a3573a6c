"""A lock between processes that the kernel takes back when its holder dies."""

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType


class FileLock:
    """A lock that is held until `release`, best in a `with` block. Made by `try_lock`.

    Args:
        path: of the lock file, removed at the release.
        descriptor: of the locked file; None where the file system cannot lock.
    """

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self._path, self._descriptor = path, descriptor

    @property
    def is_exclusive(self) -> bool:
        """Whether nobody else can hold it. False where the file system cannot lock."""
        return self._descriptor is not None

    def release(self) -> None:
        """Gives the lock back. More calls do nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with contextlib.suppress(OSError):  # another user's file in a folder with the sticky bit stays
            self._path.unlink(missing_ok=True)  # before unlocking: later it could be the next holder's
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough when a child process has inherited the file
        os.close(descriptor)

    def __enter__(self) -> "FileLock":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def try_lock(path: Path) -> FileLock | None:
    """Takes a lock at once, or says that another process or thread holds it.

    Args:
        path: of the lock file, made where it is missing with permissions that follow the umask.

    Returns:
        The lock, or None while somebody else holds it. Where the file system cannot lock, a lock that is not exclusive.
    """
    while True:
        try:
            descriptor = _opened(path)
        except OSError:
            return FileLock(path, None)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                return FileLock(path, descriptor)
            os.close(descriptor)  # its holder removed it between our two calls: the next file is the lock
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            return FileLock(path, None)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # another user's file: a lock needs no right to write


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
