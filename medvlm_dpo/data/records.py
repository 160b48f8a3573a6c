"""What a data source hands over: good records, bad records with their reasons, and the policy for bad ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from medvlm_dpo.errors import InputError, nearest
from medvlm_dpo.governance import validate_data_class
from medvlm_dpo.vocab import Example, Question

BAD_RECORD_POLICIES = ("error", "drop")
SPLITS = ("train", "validation")
SHOWN_BAD_RECORDS = 20
SHOWN_CHARACTERS = 120


class Flaw(NamedTuple):
    """One thing wrong with a record.

    Args:
        reason: what is wrong and what was expected, in words that repeat nothing of the record's content.
        detail: the content concerned (a path, a key, a value); shown for public and research data only.
    """

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used.

    Args:
        reason: what is wrong, what was expected; free of text and paths where the data are credentialed.
        id: the record's id, or None where it has none.
        source: the file it stands in, as the user named it; empty where unknown.
        place: `line 12` or `record 12`, counted from 1; empty where unknown.
    """

    reason: str
    id: str | None = None
    source: str = ""
    place: str = ""

    def __str__(self) -> str:
        name = "no id" if self.id is None else f"id {printable(self.id)}"
        where = ", ".join(part for part in (self.source, self.place, name) if part)
        return f"{where}: {self.reason}"


@dataclass(frozen=True)
class ReadReport:
    """What reading a data source gave.

    Args:
        examples: preference records by split, `train` and `validation`; empty for question sources.
        questions: evaluation records; empty for preference sources.
        dropped: bad records left out under `on_bad_record=drop`.
        notes: sentences to show once: conversions of images, repeated records, an empty split.
        num_records: records read, bad ones and repetitions included.
        source: the file of records as the user named it; empty where there is none.
        places: where in it each good record stands, by id: `line 12` or `record 12`.
    """

    examples: Mapping[str, tuple[Example, ...]] = field(default_factory=dict[str, tuple[Example, ...]])
    questions: tuple[Question, ...] = ()
    dropped: tuple[BadRecord, ...] = ()
    notes: tuple[str, ...] = ()
    num_records: int = 0
    source: str = ""
    places: Mapping[str, str] = field(default_factory=dict[str, str])


class DataSource(Protocol):
    """Anything a `data` or `questions` node builds."""

    @property
    def data_class(self) -> str:
        """`public`, `research` or `credentialed`."""
        ...

    def read(self) -> ReadReport:
        """All records; raises InputError for unusable input."""
        ...

    def input_files(self) -> tuple[Path, ...]:
        """Every file whose content decides what `read` gives."""
        ...

    def recipe(self) -> dict[str, object]:
        """Every setting that decides what `read` gives; no paths."""
        ...


def reason_of(flaws: Sequence[Flaw], data_class: str) -> str:
    """One sentence part for all flaws of a record; details are left out where the data are credentialed."""
    if data_class == "credentialed":
        return "; ".join(flaw.reason for flaw in flaws)
    return "; ".join(f"{flaw.reason} ({printable(flaw.detail)})" if flaw.detail else flaw.reason for flaw in flaws)


def printable(content: str) -> str:
    """Content of a record made fit for one line of a terminal: no line breaks or control characters, at most 120 characters."""
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in content)
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 3]}..."


def all_of(*checks: Callable[[], object]) -> None:
    """Runs every check, so that one message tells everything.

    Raises:
        InputError: with the problems of all checks that failed.
    """
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)


def validate_settings(data_class: str, on_bad_record: str, *, group: str = "data") -> None:
    """Refuses wrong values of the two settings every data source has.

    Args:
        data_class: `public`, `research` or `credentialed`.
        on_bad_record: one of `BAD_RECORD_POLICIES`.
        group: `data` or `evaluation`, for the message.

    Raises:
        InputError: with one sentence per wrong setting.
    """
    all_of(lambda: validate_data_class(data_class, f"{group}.data_class"), lambda: _validate_policy(on_bad_record, group))


def _validate_policy(on_bad_record: str, group: str) -> None:
    if on_bad_record not in BAD_RECORD_POLICIES:
        hint = nearest(str(on_bad_record), BAD_RECORD_POLICIES)
        raise InputError(f"{group}.on_bad_record: '{on_bad_record}' is no policy for bad records{hint}")


def apply_policy(
    bad: Sequence[BadRecord], on_bad_record: str, num_records: int, data_class: str, *, group: str = "data"
) -> tuple[BadRecord, ...]:
    """Refuses or drops bad records, as the user asked.

    Args:
        bad: every bad record found, one entry per record.
        on_bad_record: `error` or `drop`.
        num_records: how many records were looked at, bad ones included.
        data_class: class of the data; ids are shown for every class, reasons must already be free of content.
        group: `data` or `evaluation`, for the message.

    Returns:
        The bad records under `drop`.

    Raises:
        InputError: under `error` with any bad record; under `drop` when nothing else is left. Shows the count and the first 20.
    """
    validate_settings(data_class, on_bad_record, group=group)
    if not bad or (on_bad_record == "drop" and len(bad) < num_records):
        return tuple(bad)
    if on_bad_record == "drop":
        headline = f"All {num_records} records are bad, so dropping them ({group}.on_bad_record=drop) leaves nothing; mend the data."
    else:
        headline = (
            f"{len(bad)} of {num_records} records are bad; mend them, or set {group}.on_bad_record=drop to leave them out "
            "(they are then listed with the results)."
        )
    if len(bad) > SHOWN_BAD_RECORDS:
        headline += f" The first {SHOWN_BAD_RECORDS}:"
    raise InputError([headline, *(str(record) for record in bad[:SHOWN_BAD_RECORDS])])
