import errno
import logging
import os
import pickle
import stat
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_world import (
    GROUPS,
    KEYS,
    array_of,
    arrays_of,
    assert_complete,
    blocks,
    filled,
    never,
    open_store,
    place,
    silent,
)

from medvlm_dpo.cache import store as store_module
from medvlm_dpo.cache.blocks import Array
from medvlm_dpo.cache.store import StoreError

_log = logging.getLogger(__name__)


def test_what_was_filled_is_served_now_and_later(tmp_path: Path):
    reports: list[tuple[int, int]] = []
    store = open_store(tmp_path)
    assert store.missing([*KEYS, KEYS[0]]) == KEYS
    store.fill(GROUPS, arrays_of, report=lambda *numbers: reports.append(numbers))
    assert reports == [(3 * group, 18) for group in range(1, 7)]
    assert len(blocks(store)) == len(GROUPS)
    assert_complete(store)
    later = open_store(tmp_path)
    assert later.missing(KEYS) == []
    assert KEYS[0] in later
    later.fill(GROUPS, never, report=silent)
    assert_complete(later)


def test_a_missing_key_is_a_key_error(tmp_path: Path):
    store = filled(tmp_path)
    assert "nothing" not in store
    with pytest.raises(KeyError, match="nothing"):
        store["nothing"]


def test_only_the_missing_keys_of_a_group_are_computed(tmp_path: Path):
    asked: list[Sequence[str]] = []

    def make(keys: Sequence[str]) -> Mapping[str, Array]:
        asked.append(keys)
        return arrays_of(keys)

    store = open_store(tmp_path)
    store.fill([["b", "a", "b"]], make, report=silent)
    store.fill([["c", "a"], [], ["d", "b", "c"]], make, report=silent)
    assert asked == [["b", "a"], ["c"], ["d"]]


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=4), max_size=4))
@settings(max_examples=40, deadline=None)
def test_any_text_is_a_key(groups: list[list[str]]):
    with tempfile.TemporaryDirectory() as folder:
        open_store(Path(folder)).fill(groups, arrays_of, report=silent)
        store = open_store(Path(folder))
        for key in {key for group in groups for key in group}:
            np.testing.assert_array_equal(store[key], array_of(key))


def test_many_keys_in_many_blocks(tmp_path: Path):
    names = [f"{number:064x}" for number in range(10_000)]
    values = {name: np.full(4, number, np.float32) for number, name in enumerate(names)}
    store = open_store(tmp_path)
    groups = [names[start : start + 25] for start in range(0, len(names), 25)]
    store.fill(groups, lambda keys: {key: values[key] for key in keys}, report=silent)
    began = time.perf_counter()
    store = open_store(tmp_path)
    _log.info("10,000 keys in %d blocks opened in %.3f s", len(groups), time.perf_counter() - began)
    assert all(store[name][3] == number for number, name in enumerate(names))  # more blocks than maps are kept open
    assert len(store._maps) == store_module.MAX_MAPS < len(groups)
    assert store[names[0]][0] == 0  # of a map that was closed


def test_refresh_sees_what_others_wrote(tmp_path: Path):
    reader = open_store(tmp_path)
    filled(tmp_path)
    assert reader.missing(KEYS) == KEYS
    reader.refresh()
    assert_complete(reader)


def test_a_folder_that_cannot_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = sorted(place(filled(tmp_path)).iterdir())
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)
    store = open_store(tmp_path)
    assert not store.writable
    assert_complete(store)
    store.fill(GROUPS, never, report=silent)
    with pytest.raises(StoreError, match="cannot be written and lacks 1 of 19 arrays"):
        store.fill([*GROUPS, ["new"]], never, report=silent)
    assert sorted(place(store).iterdir()) == before


def test_a_folder_that_cannot_be_made_is_an_empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    store = open_store(tmp_path / "new")
    assert not store.writable
    assert store.missing(KEYS) == KEYS
    with pytest.raises(StoreError, match="cannot be written"):
        store.fill(GROUPS, never, report=silent)


def test_a_folder_that_turns_out_not_to_be_writable_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = filled(tmp_path)
    real = os.open

    def denied(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(StoreError, match="Permission denied"):
        store.fill([["new"]], arrays_of, report=silent)
    assert_complete(store)


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is not a folder"):
        open_store(tmp_path / "file")


@pytest.mark.parametrize(("umask", "files", "folders"), [(0o002, 0o664, 0o775), (0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_permissions_follow_the_umask(tmp_path: Path, with_umask: Callable[[int], object], umask: int, files: int, folders: int):
    with_umask(umask)
    store = filled(tmp_path / "shared" / "store")
    folder = place(store)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {files}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent, folder.parent.parent)} == {folders}


def test_a_store_travels_to_a_worker_without_its_data(tmp_path: Path):
    store = open_store(tmp_path)
    store.fill([["big"]], lambda _: {"big": np.zeros(10**6, np.uint8)}, report=silent)
    assert store["big"].size == 10**6
    travelled = pickle.dumps(store)
    assert len(travelled) < 10**4
    np.testing.assert_array_equal(pickle.loads(travelled)["big"], store["big"])
