"""From candidates to one good record per id: repetitions and bad records are told apart here for every reader."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from medvlm_dpo.data.json_records import Fields
from medvlm_dpo.data.records import BadRecord, reason_of

Content = TypeVar("Content")


@dataclass
class Candidate(Generic[Content]):
    """A record on its way: its fields with their flaws, its id, and its content unless a flaw prevents it."""

    place: str
    fields: Fields
    id: str | None
    content: Content | None


class Table(NamedTuple, Generic[Content]):
    """What is left: content by id in file order, bad records, sentences to show, and where each good record stands."""

    good: dict[str, Content]
    bad: tuple[BadRecord, ...]
    notes: tuple[str, ...]
    places: dict[str, str]


def one_per_id(candidates: Sequence[Candidate[Content]], source: str, data_class: str) -> Table[Content]:
    """Keeps the first record of every id.

    A later record with an id already used is a repetition when its content is the same (noted), and bad otherwise: nobody
    can tell which of the two was meant.

    Args:
        candidates: in file order, with every flaw found.
        source: the file, as the user named it.
        data_class: decides whether reasons carry content.
    """
    good: dict[str, Content] = {}
    bad: list[BadRecord] = []
    first_of: dict[str, Candidate[Content]] = {}
    num_repeated = 0
    for candidate in candidates:
        first = first_of.setdefault(candidate.id, candidate) if candidate.id is not None else candidate
        if first is not candidate:
            if first.fields.record == candidate.fields.record:
                num_repeated += 1
                continue
            candidate.fields.add(f"the id was already used by {first.place} with other content; give each record its own id")
        flaws = candidate.fields.flaws
        if flaws or candidate.content is None or candidate.id is None:
            bad.append(BadRecord(reason_of(flaws, data_class), candidate.id, source, candidate.place))
        else:
            good[candidate.id] = candidate.content
    notes = (f"{num_repeated:,} records repeat an earlier one word for word and are used once",) if num_repeated else ()
    return Table(good, tuple(bad), notes, {id_: first_of[id_].place for id_ in good})
