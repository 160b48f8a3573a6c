import errno
import json
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
from store_world import GROUPS, IDENTITY, KEYS, array_of, arrays_of, assert_complete, blocks, leftovers, open_store, place, silent

from medvlm_dpo.cache import store as store_module
from medvlm_dpo.cache.blocks import Array
from medvlm_dpo.cache.store import BlockStore, StoreError
from medvlm_dpo.errors import InputError
from medvlm_dpo.files import sha256_of_json

_log = logging.getLogger(__name__)


def filled(folder: Path) -> BlockStore:
    store = open_store(folder)
    store.fill(GROUPS, arrays_of, report=silent)
    return store


def never(keys: Sequence[str]) -> Mapping[str, Array]:
    raise AssertionError(f"asked for {keys}")


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


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


# --- what cannot be trusted ------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_no_damage_to_a_file_gives_a_wrong_array(data: st.DataObject):
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder))
        store.fill([KEYS], arrays_of, report=silent)
        (path,) = blocks(store)
        content = path.read_bytes()
        position = data.draw(st.integers(0, len(content) - 1))
        changed = bytes([content[position] ^ data.draw(st.integers(1, 255))])
        path.write_bytes(content[:position] + data.draw(st.sampled_from([b"", changed + content[position + 1 :]])))
        for reader in (open_store(Path(folder)), store):  # one that comes after the damage, one that had read the header before
            for key in KEYS:
                try:
                    found = reader[key]
                except KeyError:
                    assert key not in reader
                else:
                    np.testing.assert_array_equal(found, array_of(key))
            reader.fill([KEYS], arrays_of, report=silent)
            for key in KEYS:
                np.testing.assert_array_equal(reader[key], array_of(key))


def test_a_torn_array_is_dropped_with_one_warning_and_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    key = max(GROUPS[2], key=lambda key: array_of(key).size)
    filled(tmp_path)
    (path,) = [path for path in blocks(open_store(tmp_path)) if key.encode() in path.read_bytes()]
    content = path.read_bytes()
    flip(path, content.index(array_of(key).tobytes()))
    store = open_store(tmp_path)
    for _ in range(2):
        with pytest.raises(KeyError):
            store[key]
    assert [record.getMessage() for record in caplog.records] == [
        f"ignored one array of the block {path.name}: the checksum of an array differs"
    ]
    assert store.missing(KEYS) == [key]
    store.fill(GROUPS, arrays_of, report=silent)
    assert_complete(store)
    caplog.clear()
    assert_complete(open_store(tmp_path))  # the newer copy serves: nobody meets the torn one again
    assert caplog.records == []


def test_an_older_copy_serves_for_a_torn_one(tmp_path: Path):
    one, two = open_store(tmp_path), open_store(tmp_path)
    one.fill([["a", "b"]], lambda keys: {key: np.arange(9) for key in keys}, report=silent)
    (old,) = blocks(one)
    two._folder.joinpath(old.name).rename(hidden := tmp_path / "hidden")
    two.fill([["a"]], lambda keys: {key: np.arange(9) for key in keys}, report=silent)
    hidden.rename(old)
    os.utime(old, ns=(0, 0))
    (new,) = {*blocks(one)} - {old}
    flip(new, new.stat().st_size - 1)
    np.testing.assert_array_equal(open_store(tmp_path)["a"], np.arange(9))


def test_what_serves_a_key_goes_on_serving_it(tmp_path: Path):
    store, other = open_store(tmp_path), open_store(tmp_path)
    store.fill([["a"]], lambda _: {"a": np.zeros(3)}, report=silent)
    assert store["a"][0] == 0
    (path,) = blocks(store)
    path.rename(hidden := tmp_path / "hidden")
    other.fill([["a"]], lambda _: {"a": np.ones(3)}, report=silent)
    hidden.rename(path)
    store.refresh()
    assert store["a"][0] == 0


@pytest.mark.parametrize(
    ("position", "reason"),
    [
        (0, "it is not a block file"),
        (8, "its format version is"),
        (12, "its header is cut off|its header is damaged"),
        (30, "its header is damaged"),
    ],
)
def test_a_file_that_is_not_understood_is_ignored_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, position: int, reason: str
):
    flip(blocks(filled(tmp_path))[0], position)
    store = open_store(tmp_path)
    store.refresh()
    assert len(store.missing(KEYS)) == len(GROUPS[0])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert blocks(store)[0].name in record.getMessage()
    assert any(part in record.getMessage() for part in reason.split("|"))


def test_blocks_of_another_identity_are_not_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    filled(tmp_path)
    other = BlockStore(tmp_path, identity={**IDENTITY, "dtype": "bfloat16"})
    assert other.missing(KEYS) == KEYS
    assert caplog.records == []
    path = blocks(open_store(tmp_path))[0]
    path.rename(other._folder / path.name)  # somebody moved files about
    other.refresh()
    assert other.missing(KEYS) == KEYS
    assert "another model or with other settings" in caplog.text


def test_the_identity_is_written_for_people(tmp_path: Path):
    folder = tmp_path / sha256_of_json(IDENTITY)[:16]
    open_store(tmp_path)
    assert json.loads((folder / "identity.json").read_text()) == {
        "schema_version": 1,
        "sha256": sha256_of_json(IDENTITY),
        "identity": IDENTITY,
    }


def test_an_unreadable_file_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    path = blocks(filled(tmp_path))[0]
    real = Path.open

    def denied(self: Path, mode: str) -> object:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(self, mode)

    monkeypatch.setattr(Path, "open", denied)
    assert len(open_store(tmp_path).missing(KEYS)) == len(GROUPS[0])
    assert caplog.messages == [f"ignored the block {path.name}: it cannot be read (Permission denied)"]


def test_a_removed_file_counts_as_missing_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    store = filled(tmp_path)
    for path in blocks(store):
        path.unlink()
    with pytest.raises(KeyError):
        store[KEYS[0]]
    assert store.missing(KEYS[:4]) == KEYS[:3]  # its whole block is gone; of the others nothing is known yet
    assert len(caplog.messages) == 1
    assert "No such file" in caplog.text


# --- a fill that goes wrong ------------------------------------------------------------------------------------------


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


# --- sharing ---------------------------------------------------------------------------------------------------------


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
