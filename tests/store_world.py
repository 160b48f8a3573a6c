"""Arrays and groups for tests of the store; as a program, one process that fills it: `store_world.py ROLE FOLDER LOG`."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medvlm_dpo.cache.blocks import Array
from medvlm_dpo.cache.store import BlockStore
from medvlm_dpo.files import sha256_of_json

IDENTITY = {"weights": "0f" * 32, "dtype": "float32"}
GROUPS = [[f"group{group}-key{key}" for key in range(3)] for group in range(6)]
KEYS = [key for group in GROUPS for key in group]
KILLED = -signal.SIGKILL  # what Popen.wait says of it


def array_of(key: str) -> Array:
    """An array that only its key determines, of 0 to 31 numbers."""
    digest = hashlib.sha256(key.encode()).digest()
    return np.frombuffer(digest, dtype=np.uint8)[: digest[0] % 32].astype(np.float32)


def arrays_of(keys: Sequence[str]) -> Mapping[str, Array]:
    """What `make` returns."""
    return {key: array_of(key) for key in keys}


def open_store(folder: Path, **more: Any) -> BlockStore:
    """The store of these tests."""
    return BlockStore(folder, identity=IDENTITY, **more)


def silent(done: int, total: int) -> None:
    """A report to nobody."""


def assert_values(store: BlockStore) -> None:
    """Every array is there and its own."""
    for key in KEYS:
        np.testing.assert_array_equal(store[key], array_of(key))


def assert_complete(store: BlockStore) -> None:
    """Every array is there and its own, and nothing half-written lies about."""
    assert_values(store)
    assert leftovers(store) == []


def place(store: BlockStore) -> Path:
    """The folder of the store's own identity."""
    return store._folder


def blocks(store: BlockStore) -> list[Path]:
    """Its block files."""
    return sorted(place(store).glob("*.block"))


def leftovers(store: BlockStore) -> list[str]:
    """Everything in it that is neither a block nor the note for people."""
    return sorted(path.name for path in place(store).iterdir() if path.suffix != ".block" and path.name != "identity.json")


def calls(log: Path) -> list[str]:
    """The first key of every call of `make`, over all processes, in order."""
    return log.read_text().split() if log.exists() else []


def wait_for(happened: Callable[[], bool]) -> None:
    """Waits until something has happened in another process; gives up after a minute."""
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "nothing happened for a minute"
        time.sleep(0.01)


def start(role: str, folder: Path, log: Path) -> "subprocess.Popen[bytes]":
    """Starts one process of this file."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen([sys.executable, __file__, role, str(folder), str(log)], env={**os.environ, "PYTHONPATH": path})


def filled(folder: Path) -> BlockStore:
    """A store with every group in it."""
    store = open_store(folder)
    store.fill(GROUPS, arrays_of, report=silent)
    return store


def never(keys: Sequence[str]) -> Mapping[str, Array]:
    """A `make` that must not be called."""
    raise AssertionError(f"asked for {keys}")


def lock_file(store: BlockStore, group: Sequence[str]) -> Path:
    """Where the lock of a group lies."""
    return place(store) / f"{sha256_of_json(sorted(group))[:16]}.lock"


def flip(path: Path, position: int) -> None:
    """Changes one byte of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


# --- the roles of a process ------------------------------------------------------------------------------------------


def _die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _third(function: Callable[..., Any], then: Callable[..., Any]) -> Callable[..., Any]:
    """A function that does something else when it is called for the third time."""
    count = 0

    def counted(*arguments: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        return (then if count == 3 else function)(*arguments, **more)

    return counted


def main(role: str, folder: Path, log: Path) -> None:
    """Fills the store, or dies in the third group."""

    def make(keys: Sequence[str]) -> Mapping[str, Array]:
        with log.open("a") as stream:  # one short write in append mode: lines of several processes do not mix
            stream.write(f"{keys[0]}\n")
        time.sleep(0.03)  # so that the others get their turn
        return arrays_of(keys)

    store = open_store(folder)
    if role == "dies_in_make":
        make = _third(make, _die)
    elif role == "sleeps_in_make":
        make = _third(make, lambda _: (log.with_suffix(".asleep").touch(), time.sleep(600)))
    elif role == "dies_before_sync":
        os.fsync = _third(os.fsync, _die)
    elif role == "dies_before_rename":
        os.replace = _third(os.replace, _die)
    elif role == "waits_for_start":
        log.with_suffix(f".{os.getpid()}").touch()
        wait_for(log.with_suffix(".start").exists)
    store.fill(GROUPS, make, report=silent)
    assert_values(store)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
