import errno
import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medvlm_dpo.cache.locks import FileLock, try_lock


def taken(path: Path) -> FileLock:
    lock = try_lock(path)
    assert lock is not None
    return lock


def test_one_holder_at_a_time_and_no_file_afterwards(tmp_path: Path):
    path = tmp_path / "a.lock"
    with taken(path) as lock:
        assert lock.is_exclusive
        assert try_lock(path) is None
    assert not path.exists()
    lock.release()  # once more does nothing
    taken(path).release()


def test_another_process_is_kept_out(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from medvlm_dpo.cache.locks import try_lock; sys.exit(try_lock(Path(sys.argv[1])) is None)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.lock")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with taken(tmp_path / "a.lock"):
        assert subprocess.run(command, env=environment, check=False).returncode == 1
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    taken(tmp_path / "a.lock").release()  # it went without releasing


def test_a_child_that_inherits_the_file_does_not_keep_the_lock(tmp_path: Path):
    lock = taken(tmp_path / "a.lock")
    assert lock._descriptor is not None
    copy = os.dup(lock._descriptor)  # what a forked worker has
    other = os.open(f"/proc/self/fd/{copy}", os.O_RDONLY)  # the same file opened anew, although its name will be gone
    lock.release()
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # would raise
    os.close(copy)
    os.close(other)


def test_a_lock_whose_file_was_removed_meanwhile_is_not_taken_for_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.lock"
    first = taken(path)
    lock_of_old_file = fcntl.flock

    def release_just_before(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock_of_old_file)
        first.release()
        lock_of_old_file(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", release_just_before)
    with taken(path) as second:
        assert second.is_exclusive
        assert path.exists()
        assert try_lock(path) is None


def test_another_users_file_is_locked_without_the_right_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.lock"
    path.touch()
    real = os.open

    def read_only(name: Path, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_RDWR | os.O_CREAT):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(name, flags, mode)

    monkeypatch.setattr(os, "open", read_only)
    with taken(path) as lock:
        assert lock.is_exclusive
        assert try_lock(path) is None


@pytest.mark.parametrize("function", ["fcntl.flock", "os.open"])
def test_where_nothing_can_be_locked_everybody_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str):
    def fails(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(function, fails)
    with taken(tmp_path / "a.lock") as one, taken(tmp_path / "a.lock") as two:
        assert not one.is_exclusive
        assert not two.is_exclusive


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_the_file_follows_the_umask(tmp_path: Path, with_umask: Callable[[int], None], umask: int, mode: int):
    with_umask(umask)
    with taken(tmp_path / "a.lock"):
        assert stat.S_IMODE((tmp_path / "a.lock").stat().st_mode) == mode
