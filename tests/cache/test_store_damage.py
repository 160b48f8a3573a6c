"""Damaged, foreign and lost files: never a wrong array."""

import errno
import json
import logging
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_world import (
    GROUPS,
    IDENTITY,
    KEYS,
    array_of,
    arrays_of,
    assert_complete,
    blocks,
    filled,
    flip,
    open_store,
    silent,
)

from medvlm_dpo.cache.store import BlockStore
from medvlm_dpo.files import sha256_of_json


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


def test_a_block_that_replaces_a_lost_one_is_verified_too(tmp_path: Path):
    store = open_store(tmp_path)
    for damaged in (False, True):
        store.fill([["a"]], lambda _: {"a": np.arange(9)}, report=silent)
        (path,) = blocks(store)
        if damaged:
            flip(path, path.stat().st_size - 1)
            with pytest.raises(KeyError):
                store["a"]
        else:
            assert store["a"][8] == 8
            store._maps.clear()  # as when many other blocks were read
            path.unlink()
            with pytest.raises(KeyError):
                store["a"]


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
