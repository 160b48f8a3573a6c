"""`status.json` and `result.json` of a cell: how far it is, and what came out."""

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from medvlm_dpo.errors import InputError
from medvlm_dpo.files import SCHEMA_VERSION, read_json, utc_now, write_json_atomic

STATUS_FILE, RESULT_FILE = "status.json", "result.json"
STATES = ("frozen", "running", "finished", "failed", "interrupted")


@dataclass(frozen=True)
class Status:
    """How far a cell is.

    Args:
        state: one of `STATES`.
        attempt: how often it was started.
        started_at, ended_at: of the last attempt, UTC with offset.
        message: why it failed, else empty.
        pid, host: where it runs or ran.
    """

    state: str = "frozen"
    attempt: int = 0
    started_at: str | None = None
    ended_at: str | None = None
    message: str = ""
    pid: int | None = None
    host: str | None = None


def write_status(folder: Path, status: Status) -> None:
    """Writes `status.json` of a cell folder, atomically."""
    if status.state not in STATES:
        raise ValueError(f"state {status.state!r}; choose from {', '.join(STATES)}")
    write_json_atomic(folder / STATUS_FILE, asdict(status))


def read_status(folder: Path) -> Status:
    """Reads `status.json`; a folder without one is frozen and not yet started."""
    document = read_document(folder / STATUS_FILE, required=False)
    known = {field.name for field in fields(Status)}
    return Status(**{key: value for key, value in document.items() if key in known})


def mark_running(folder: Path) -> Status:
    """Starts a new attempt in this process."""
    attempt = read_status(folder).attempt + 1
    status = Status("running", attempt, utc_now(), None, "", os.getpid(), socket.gethostname())
    write_status(folder, status)
    return status


def mark_ended(folder: Path, state: str, message: str = "") -> Status:
    """Ends the present attempt: `finished`, `failed` (with its reason) or `interrupted`."""
    before = read_status(folder)
    status = Status(state, before.attempt, before.started_at, utc_now(), message, before.pid, before.host)
    write_status(folder, status)
    return status


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Writes `result.json` of a cell folder with its time, atomically; its presence says that the training is complete."""
    write_json_atomic(folder / RESULT_FILE, {**result, "finished_at": utc_now()})


def read_document(path: Path, *, required: bool = True) -> dict[str, Any]:
    """Reads one JSON file of the ledger.

    Args:
        path: the file.
        required: False gives an empty mapping for a file that does not exist.

    Raises:
        InputError: missing, not a JSON object, or of another schema version; names the file.
    """
    if not required and not path.exists():
        return {}
    try:
        document: Any = read_json(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; it belongs to every folder of this kind, so check the path.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); restore it, or delete its folder and run the same command.") from error
    return checked(document, path)


def checked(document: object, path: Path) -> dict[str, Any]:
    """The document, when it is a mapping of the schema version this program reads."""
    if not isinstance(document, dict):
        raise InputError(f"{path} should hold one mapping, found {type(document).__name__}; delete its folder and run the same command.")
    if document.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema_version {document.get('schema_version')!r}, this program reads {SCHEMA_VERSION}; "
            "use the version that wrote it, or another paths.output_dir."
        )
    return document
