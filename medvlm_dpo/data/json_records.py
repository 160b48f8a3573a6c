"""JSON files of records: read whole, refused with file, line and column, and their fields checked one by one."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from medvlm_dpo.data.records import SHOWN_BAD_RECORDS, Flaw
from medvlm_dpo.errors import InputError

_TOO_LARGE = 1e300  # whole numbers in JSON have no limit, floats do


class RawRecord(NamedTuple):
    """One JSON value of a file and where it stands: `record 3` of a list, `line 3` of a .jsonl file, counted from 1."""

    place: str
    value: Any


def read_records(path: Path) -> list[RawRecord]:
    """Every record of a JSON list, of a file with one JSON object, or of a `.jsonl` file (blank lines are skipped).

    Args:
        path: an existing file, UTF-8 with or without a byte-order mark.

    Raises:
        InputError: the file is empty, not UTF-8, cut off or no JSON, with line and column; or holds something else than records.
    """
    text = _text_of(path)
    records = _lines(path, text) if path.suffix == ".jsonl" else _document(path, text)
    if not records:
        raise InputError(f"{path}: the file holds no records")
    return records


@dataclass
class Fields:
    """Reads the fields of one record; what is wrong goes to `flaws`, and the value is then None.

    Args:
        record: the record.
        flaws: what is wrong with it so far.
    """

    record: Mapping[str, Any]
    flaws: list[Flaw] = field(default_factory=list[Flaw])

    def add(self, reason: str, detail: str = "") -> None:
        """Notes one more flaw."""
        self.flaws.append(Flaw(reason, detail))

    def identifier(self, name: str) -> str | None:
        """A string or whole number that names the record."""
        return identifier_of(self.record, name) or self._missing(name, "a string or a whole number")

    def text(self, name: str, *, required: bool = True) -> str | None:
        """A string that is not blank, without blanks at its ends; where it is not required, a blank one is an absent one."""
        value = self.record.get(name)
        if not required and (value is None or (isinstance(value, str) and not value.strip())):
            return None
        if not isinstance(value, str):
            return self._missing(name, "a string")
        return self.clean(value, name)

    def clean(self, value: str, name: str) -> str | None:
        """The text without blanks at its ends; blank text and text that cannot be encoded are flaws."""
        stripped = value.strip()
        if not stripped:
            self.add(f"{name} is empty")
        elif not _is_encodable(stripped):
            self.add(f"{name} holds half a surrogate pair, which is no Unicode text")
            return None
        return stripped or None

    def image(self, name: str, *, required: bool = True) -> str | None:
        """The path of one image: a string, or a list of one string."""
        value = self.record.get(name)
        if value is None and not required:
            return None
        if isinstance(value, list) and len(value) > 1:
            self.add(f"{name} lists {len(value)} images; records with one image are read")
            return None
        single = value[0] if isinstance(value, list) and value else value
        if not isinstance(single, str) or not single.strip():
            return self._missing(name, "a path, or a list of one path")
        return single.strip()

    def number(self, name: str) -> float | None:
        """A finite number of at least 0, or None where the field is absent or null."""
        value = self.record.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return self._missing(name, "a number")
        if not 0 <= value < _TOO_LARGE:
            self.add(f"{name} must be a finite number of at least 0", str(value))
            return None
        return float(value)

    def _missing(self, name: str, expected: str) -> None:
        value = self.record.get(name)
        if value in (None, "", []):
            self.add(f"{name} is missing; expected {expected}")
        else:
            self.add(f"{name} is {kind_of(value)}; expected {expected}")


def image_names(records: Iterable[RawRecord], keys: Sequence[str]) -> list[str]:
    """The image paths that records name under these keys, whatever else is wrong with them."""
    fields = (Fields(record.value) for record in records if isinstance(record.value, dict))
    return [name for one in fields for key in keys if (name := one.image(key, required=False))]


def identifier_of(record: Mapping[str, Any], name: str) -> str | None:
    """The record's name, or None where it has no usable one."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value).strip()
    return text if _is_encodable(text) and text else None


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text_of(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read: {error.strerror}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: the file is not UTF-8 (byte {error.start + 1}); save it as UTF-8") from None
    if not text.strip():
        raise InputError(f"{path}: the file is empty; expected JSON records")
    return text


def _document(path: Path, text: str) -> list[RawRecord]:
    document = _parse(path, text, 1)
    if isinstance(document, dict):
        document = [document]
    if not isinstance(document, list):
        raise InputError(f"{path}: expected a list of records, or one record, found {kind_of(document)}")
    return [RawRecord(f"record {number}", value) for number, value in enumerate(document, 1)]


def _lines(path: Path, text: str) -> list[RawRecord]:
    records: list[RawRecord] = []
    problems: list[str] = []
    # Not splitlines: JSON strings may hold line separators such as U+2028 as they are.
    for number, line in enumerate(text.split("\n"), 1):
        try:
            if line.strip():
                records.append(RawRecord(f"line {number}", _parse(path, line, number)))
        except InputError as error:
            problems += error.problems
    if problems:
        more = len(problems) - SHOWN_BAD_RECORDS
        raise InputError([*problems[:SHOWN_BAD_RECORDS], *([f"{path}: and {more} more lines"] if more > 0 else [])])
    return records


def _parse(path: Path, text: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}, line {first_line + error.lineno - 1}, column {error.colno}"
        raise InputError(f"{where}: {_json_reason(error, text)}") from None
    except (RecursionError, ValueError):  # nested thousands deep; a number of thousands of digits
        raise InputError(f"{path}, line {first_line}: nested too deeply, or a number with too many digits") from None


def _json_reason(error: json.JSONDecodeError, text: str) -> str:
    if error.msg.startswith("Unterminated") or error.pos >= len(text.rstrip()):
        return "the JSON ends in the middle; the file is cut off"
    if error.msg == "Extra data" and error.lineno > 1:
        return "a second JSON value follows the first; if the file has one record a line, name it .jsonl"
    return f"this is no JSON ({error.msg})"
