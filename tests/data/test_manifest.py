import json
import logging
import os
import time
from pathlib import Path

import pytest

from medvlm_dpo.data.manifest import Manifest
from medvlm_dpo.files import sha256_of_bytes

OLD_NS = 1_600_000_000_000_000_000  # long before any test runs


def written(path: Path, content: bytes, mtime_ns: int = OLD_NS) -> Path:
    path.write_bytes(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    """The content changes behind the manifest's back: same size, same time, long settled. Only `full` can see that."""
    file, store = written(tmp_path / "x", b"one"), tmp_path / "manifest.json"
    first = Manifest(store)
    assert first.sha256(file) == sha256_of_bytes(b"one")
    first.save()
    written(file, b"two")
    assert Manifest(store).sha256(file) == sha256_of_bytes(b"one")
    assert Manifest(store).sha256(file, full=True) == sha256_of_bytes(b"two")
    full = Manifest(store, full=True)
    assert full.sha256(file) == sha256_of_bytes(b"two")
    full.save()
    assert Manifest(store).sha256(file) == sha256_of_bytes(b"two")


@pytest.mark.parametrize(("content", "mtime_ns"), [(b"three", OLD_NS), (b"two", OLD_NS + 1)])
def test_another_size_or_time_is_another_content(tmp_path: Path, content: bytes, mtime_ns: int) -> None:
    file, manifest = written(tmp_path / "x", b"one"), Manifest()
    manifest.sha256(file)
    written(file, content, mtime_ns)
    assert manifest.sha256(file) == sha256_of_bytes(content)


@pytest.mark.parametrize("ahead_s", [0, 3600])
def test_a_file_changed_just_now_is_not_trusted(tmp_path: Path, ahead_s: int) -> None:
    """Two changes within one tick of the file system's clock leave size and time alike; a clock ahead of ours is no better."""
    now_ns, store = time.time_ns() + ahead_s * 10**9, tmp_path / "manifest.json"
    file = written(tmp_path / "x", b"one", now_ns)
    first = Manifest(store)
    first.sha256(file)
    first.save()
    written(file, b"two", now_ns)
    assert first.sha256(file) == sha256_of_bytes(b"two")
    assert Manifest(store).sha256(file) == sha256_of_bytes(b"two")


def test_links_share_the_entry_of_their_target(tmp_path: Path) -> None:
    file = written(tmp_path / "x", b"one")
    (tmp_path / "link").symlink_to(file)
    manifest = Manifest()
    manifest.sha256(file)
    written(file, b"two")
    assert manifest.sha256(tmp_path / "link") == sha256_of_bytes(b"one")


def test_two_writers_keep_each_others_entries(tmp_path: Path) -> None:
    store = tmp_path / "manifest.json"
    files = [written(tmp_path / name, name.encode()) for name in ("a", "b")]
    writers = [Manifest(store), Manifest(store)]
    for writer, file in zip(writers, files, strict=True):
        writer.sha256(file)
        writer.remember_verdict(file.name, "check", {"fine": True})
    for writer in writers:
        writer.save()
    for file in files:
        written(file, b"#")
    later = Manifest(store)
    assert [later.sha256(file) for file in files] == [sha256_of_bytes(b"a"), sha256_of_bytes(b"b")]
    assert [later.verdict(name, "check") for name in "ab"] == [{"fine": True}] * 2
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_verdicts_are_kept_by_content_and_check(tmp_path: Path) -> None:
    manifest = Manifest()
    manifest.remember_verdict("abc", "image-1", {"flaw": None})
    assert manifest.verdict("abc", "image-1") == {"flaw": None}
    assert manifest.verdict("abc", "image-2") is None
    assert manifest.verdict("abd", "image-1") is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema_version": 1}', '{"schema_version": 99, "files": {"/x": [1, 1, "z"]}, "verdicts": {}}']
)
def test_a_damaged_or_foreign_manifest_is_empty(tmp_path: Path, content: str) -> None:
    store, file = tmp_path / "manifest.json", written(tmp_path / "x", b"one")
    store.write_text(content)
    manifest = Manifest(store)
    assert manifest.sha256(file) == sha256_of_bytes(b"one")
    manifest.save()
    assert json.loads(store.read_text())["schema_version"] == 1


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    store = tmp_path / "manifest.json"
    Manifest(store).save()
    assert not store.exists()


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Manifest().sha256(tmp_path / "x")


def test_a_place_that_cannot_be_written_costs_time_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Hydra switches off the loggers it finds and leaves the root at ERROR; a test that composes may have run before in this process.
    monkeypatch.setattr(logging.getLogger("medvlm_dpo.data.manifest"), "disabled", False)
    caplog.set_level(logging.WARNING, logger="medvlm_dpo.data.manifest")
    (tmp_path / "file").write_text("no folder")
    manifest = Manifest(tmp_path / "file" / "manifest.json")
    manifest.remember_verdict("abc", "image-1", {"flaw": None})
    manifest.save()
    assert "could not be kept" in caplog.text
    assert manifest.verdict("abc", "image-1") == {"flaw": None}
