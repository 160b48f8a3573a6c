"""Processes that fill one store at once, and processes that are killed at it."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from store_world import GROUPS, KILLED, arrays_of, assert_complete, blocks, calls, open_store, start, wait_for

from medvlm_dpo.cache.blocks import Array

FIRST_KEYS = sorted(group[0] for group in GROUPS)


@pytest.mark.parametrize("num_processes", [2, 4])
def test_each_group_is_made_by_one_process_and_read_by_all(tmp_path: Path, num_processes: int):
    log = tmp_path / "log"
    processes = [start("waits_for_start", tmp_path / "store", log) for _ in range(num_processes)]
    wait_for(lambda: len(list(tmp_path.glob("log.*"))) == num_processes)
    (tmp_path / "log.start").touch()
    assert [process.wait() for process in processes] == [0] * num_processes  # each has read every array and compared it
    assert sorted(calls(log)) == FIRST_KEYS
    store = open_store(tmp_path / "store")
    assert len(blocks(store)) == len(GROUPS)
    assert_complete(store)


@pytest.mark.parametrize("role", ["dies_in_make", "dies_before_sync", "dies_before_rename"])
def test_a_killed_process_loses_its_unfinished_block_only(tmp_path: Path, role: str):
    log = tmp_path / "log"
    assert start(role, tmp_path / "store", log).wait() == KILLED
    store = open_store(tmp_path / "store")
    assert store.missing(key for group in GROUPS for key in group) == [key for group in GROUPS[2:] for key in group]
    log.unlink()
    assert start("fills", tmp_path / "store", log).wait() == 0
    assert calls(log) == FIRST_KEYS[2:]
    store.refresh()
    assert len(blocks(store)) == len(GROUPS)
    assert_complete(store)


def test_a_waiting_process_takes_over_from_a_dead_one(tmp_path: Path):
    log = tmp_path / "log"
    sleeper = start("sleeps_in_make", tmp_path / "store", log)
    wait_for((tmp_path / "log.asleep").exists)
    made: list[str] = []
    done: list[int] = []

    def make(keys: Sequence[str]) -> Mapping[str, Array]:
        made.append(keys[0])
        return arrays_of(keys)

    store = open_store(tmp_path / "store")
    waiter = threading.Thread(target=lambda: store.fill(GROUPS, make, report=lambda present, _: done.append(present)), daemon=True)
    waiter.start()
    wait_for(lambda: len(made) == 3)  # the free groups behind the held one
    waiter.join(0.5)
    assert waiter.is_alive()
    assert made == FIRST_KEYS[3:]
    sleeper.kill()
    sleeper.wait()
    waiter.join(60)
    assert made == [*FIRST_KEYS[3:], FIRST_KEYS[2]]
    assert done[-1] == 18
    assert_complete(store)
