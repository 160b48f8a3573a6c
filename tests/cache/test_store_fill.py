"""Fills that go wrong or meet another one."""

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from store_world import (
    GROUPS,
    KEYS,
    arrays_of,
    assert_complete,
    blocks,
    filled,
    leftovers,
    lock_file,
    never,
    open_store,
    place,
    silent,
)

from medvlm_dpo.cache import store as store_module
from medvlm_dpo.cache.blocks import Array
from medvlm_dpo.cache.store import BlockStore, StoreError
from medvlm_dpo.errors import InputError


@pytest.mark.parametrize("error", [RuntimeError("no memory"), OSError(errno.ENOSPC, "of make itself"), KeyboardInterrupt()])
def test_an_exception_of_make_passes_and_leaves_nothing(tmp_path: Path, error: BaseException):
    def make(keys: Sequence[str]) -> Mapping[str, Array]:
        if keys == GROUPS[1]:
            raise error
        return arrays_of(keys)

    store = open_store(tmp_path)
    with pytest.raises(type(error)) as caught:
        store.fill(GROUPS, make, report=silent)
    assert caught.value is error
    assert leftovers(store) == []
    assert store.missing(KEYS) == [key for group in GROUPS[1:] for key in group]
    open_store(tmp_path).fill(GROUPS, arrays_of, report=silent)  # the lock is free: this does not wait
    store.refresh()
    assert_complete(store)


@pytest.mark.parametrize(
    "made", [{}, {"a": np.ones(1)}, {"a": np.ones(1), "b": np.ones(1), "c": np.ones(1)}, {"a": np.ones(1), "c": np.ones(1)}]
)
def test_make_returns_what_it_was_asked_for(tmp_path: Path, made: dict[str, Array]):
    store = open_store(tmp_path)
    with pytest.raises(ValueError, match=rf"asked for 2 arrays, got {len(made)}: {len({'a', 'b'} - made.keys())} lacking"):
        store.fill([["a", "b"]], lambda _: made, report=silent)
    assert blocks(store) == leftovers(store) == []


def test_a_full_disk_refuses_the_block_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = filled(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device") as caught:
        store.fill([["new"]], arrays_of, report=silent)
    assert str(place(store)) in str(caught.value)
    assert issubclass(StoreError, InputError)
    assert_complete(store)
    assert "new" not in open_store(tmp_path)


def test_the_limit_refuses_and_changes_nothing(tmp_path: Path):
    size = sum(path.stat().st_size for path in place(filled(tmp_path)).iterdir())
    new = np.zeros(1000, np.uint8)
    block = 64 + 256 + 1000  # a little more than its block can have
    store = open_store(tmp_path, limit_gb=(size + 1000) / 1e9)
    before = sorted(path.name for path in place(store).iterdir())
    with pytest.raises(StoreError, match="would exceed limit_gb=") as caught:
        store.fill([["new"]], lambda _: {"new": new}, report=silent)
    assert str(tmp_path) in str(caught.value)
    assert f"holds {size / 1e9:.3g} GB" in str(caught.value)
    assert sorted(path.name for path in place(store).iterdir()) == before
    assert_complete(store)
    open_store(tmp_path, limit_gb=(size + block) / 1e9).fill([["new"]], lambda _: {"new": new}, report=silent)
    store.refresh()
    np.testing.assert_array_equal(store["new"], new)


def test_the_limit_counts_every_identity_and_is_met_before_the_work(tmp_path: Path):
    BlockStore(tmp_path, identity={"weights": "other"}).fill(GROUPS, arrays_of, report=silent)
    with pytest.raises(StoreError, match="the next block would exceed limit_gb=1e-06"):
        open_store(tmp_path, limit_gb=1e-6).fill(GROUPS, never, report=silent)


def test_leftovers_are_removed_unless_somebody_is_at_them(tmp_path: Path):
    store = open_store(tmp_path)
    folder = place(store)
    for name in ("0" * 16, "1" * 16):
        (folder / f"{name}-12345678.tmp").write_bytes(b"half")
        (folder / f"{name}.lock").touch()
    lock = store_module.try_lock(folder / f"{'1' * 16}.lock")
    assert lock is not None
    with lock:
        store.fill(GROUPS, arrays_of, report=silent)
        assert leftovers(store) == [f"{'1' * 16}-12345678.tmp", f"{'1' * 16}.lock"]
    store.fill(GROUPS, never, report=silent)
    assert_complete(store)


def test_where_nothing_can_be_locked_the_fill_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    folder = place(open_store(tmp_path))
    (folder / f"{'0' * 16}-12345678.tmp").touch()
    monkeypatch.setattr("fcntl.flock", fails)
    filled(tmp_path)
    assert f"{'0' * 16}-12345678.tmp" in leftovers(open_store(tmp_path))  # nobody can tell whether its process lives


def test_what_others_finish_meanwhile_is_not_made_again(tmp_path: Path):
    store, other = open_store(tmp_path), open_store(tmp_path)
    made: list[Sequence[str]] = []

    def make(keys: Sequence[str]) -> Mapping[str, Array]:
        made.append(keys)
        return arrays_of(keys)

    store.fill(GROUPS, make, report=lambda *_: other.fill(GROUPS[1:], arrays_of, report=silent))
    assert made == [GROUPS[0]]
    assert_complete(store)


def test_a_held_group_is_looked_at_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = open_store(tmp_path)
    lock = store_module.try_lock(lock_file(store, GROUPS[0]))
    assert lock is not None
    sleeps: list[float] = []

    def sleep(duration_s: float) -> None:
        sleeps.append(duration_s)
        if len(sleeps) == 3:
            lock.release()

    monkeypatch.setattr(store_module.time, "sleep", sleep)
    store.fill(GROUPS[:1], arrays_of, report=silent)
    assert sleeps == [store_module.POLL_S] * 3


def test_the_order_of_a_group_does_not_matter_to_its_lock(tmp_path: Path):
    store, other = open_store(tmp_path), open_store(tmp_path)
    entered: list[Path] = []

    def make(keys: Sequence[str]) -> Mapping[str, Array]:
        entered.extend(place(store).glob("*.lock"))
        return arrays_of(keys)

    store.fill([["a", "b", "a"]], make, report=silent)
    for path in blocks(store):
        path.unlink()
    other.fill([["b", "a"]], make, report=silent)
    assert len(entered) == 2
    assert entered[0] == entered[1] == lock_file(store, ["a", "b"])


def test_what_a_process_left_that_died_while_we_waited_is_removed(tmp_path: Path):
    store = open_store(tmp_path)
    half = lock_file(store, GROUPS[1]).stem + "-12345678.tmp"
    store.fill(GROUPS[:2], arrays_of, report=lambda done, _: (place(store) / half).touch() if done == len(GROUPS[0]) else None)
    assert leftovers(store) == []
