"""Small file helpers every layer uses: atomic writes, hashes, timestamps. No torch here: the driver imports this."""

import hashlib
import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1


def utc_now() -> str:
    """The present time in UTC with its offset, to the millisecond: `2026-11-22T06:10:00.123+00:00`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def write_bytes_atomic(path: Path, content: bytes, *, private: bool = False) -> None:
    """Writes through a temporary file in the same folder, so that a reader sees the old or the new content, never half.

    Args:
        path: of the file; its folder is made where it is missing.
        content: all of it.
        private: readable by its owner alone, whatever the umask and the file that stood there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if not private:
            Path(temporary).chmod(0o666 & ~_umask())  # mkstemp gives 0600; a group's shared folder needs the umask
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json_atomic(path: Path, content: dict[str, Any]) -> None:
    """Writes one JSON object with its `schema_version`, atomically."""
    document = {"schema_version": SCHEMA_VERSION, **content}
    write_bytes_atomic(path, (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Reads one JSON object written by `write_json_atomic`."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def sha256_of_bytes(content: bytes) -> str:
    """Hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_json(content: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value in canonical form: sorted keys, no blanks."""
    return sha256_of_bytes(json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
