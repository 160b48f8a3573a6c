"""What is known of files without reading them again: hashes by path, size and time; verdicts on images by content."""

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medvlm_dpo.files import SCHEMA_VERSION, sha256_of_file, write_json_atomic

_log = logging.getLogger(__name__)

# A file changed twice within one tick of its clock keeps its size and its time (git calls such an entry "racy"): the tick
# of FAT is 2 s. A hash taken so soon after the last change is used but never remembered.
TRUSTED_AGE_NS = 2_000_000_000


class FileState(NamedTuple):
    """What a file looked like when it was hashed."""

    size: int
    mtime_ns: int
    sha256: str


class Manifest:
    """A cache of content hashes and of verdicts on contents, kept in one JSON file.

    Losing the file costs time, never correctness, so an unreadable one is taken as empty. Several processes may use one
    file: `save` merges with what others wrote and replaces the file atomically.

    Args:
        path: the JSON file; None keeps everything in memory.
        full: read every file again (once per manifest object), whatever its size and time say.
    """

    def __init__(self, path: Path | None = None, *, full: bool = False) -> None:
        self._path, self._full = path, full
        self._files, self._verdicts = _read(path)
        self._read_again: set[str] = set()
        self._changed = False

    def sha256(self, file: Path, *, full: bool = False) -> str:
        """Hexadecimal SHA-256 of a file's content.

        Args:
            file: the file; symbolic links are followed.
            full: read it even if path, size and time are known.

        Raises:
            OSError: the file cannot be read.
        """
        name = os.path.realpath(file)
        before = Path(name).stat()
        known = self._files.get(name)
        must_read = full or (self._full and name not in self._read_again)
        if known and (known.size, known.mtime_ns) == (before.st_size, before.st_mtime_ns) and not must_read:
            return known.sha256
        now_ns = time.time_ns()
        digest = sha256_of_file(Path(name))
        after = Path(name).stat()
        untouched = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        settled = untouched and now_ns - before.st_mtime_ns > TRUSTED_AGE_NS
        self._remember(name, FileState(before.st_size, before.st_mtime_ns, digest) if settled else None)
        return digest

    def verdict(self, sha256: str, check: str) -> Mapping[str, Any] | None:
        """What `check` (a name with its version) said of this content, or None if it has not been asked."""
        return self._verdicts.get(f"{check} {sha256}")

    def remember_verdict(self, sha256: str, check: str, verdict: Mapping[str, Any]) -> None:
        """Keeps the answer of `check` for this content; JSON values only."""
        self._verdicts[f"{check} {sha256}"] = dict(verdict)
        self._changed = True

    def save(self) -> None:
        """Merges with the file's present content and replaces it; does nothing when nothing is new.

        A folder that cannot be written costs the next check its time; whether that is an error is for others to say.
        """
        if self._path is None or not self._changed:
            return
        files, verdicts = _read(self._path)
        self._files = {**files, **self._files}
        self._verdicts = {**verdicts, **self._verdicts}
        document = {"files": {name: list(state) for name, state in self._files.items()}, "verdicts": self._verdicts}
        try:
            write_json_atomic(self._path, document)
        except OSError as error:
            _log.warning("what is known of the input files could not be kept in %s: %s", self._path, error.strerror)
        else:
            self._changed = False

    def _remember(self, name: str, state: FileState | None) -> None:
        self._read_again.add(name)
        if self._files.get(name) != state:
            self._changed = True
        if state is None:
            self._files.pop(name, None)
        else:
            self._files[name] = state


def _read(path: Path | None) -> tuple[dict[str, FileState], dict[str, Any]]:
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path else {}
        if document.get("schema_version") != SCHEMA_VERSION:
            return {}, {}
        return {name: FileState(*state) for name, state in document["files"].items()}, dict(document["verdicts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, {}
