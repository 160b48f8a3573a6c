"""Which cells belong together: rows are cells that differ in their seed only, blocks are rows with one starting model."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medvlm_dpo.results.ledger import CellRecord, SweepRecord

GROUPS = ("model", "adapter", "reference", "corruption", "loss", "data", "trainer")
# Losses bring their own settings for these; across losses such a difference says nothing, within one loss it is a setting tried.
OWN_GROUPS = ("reference", "corruption", "loss")
SILENT_KEYS = frozenset({"_partial_", "_shared_", "path", "image_root", "checkpoint", "starting_model"})
BASELINE_LOSS = "sft"


@dataclass(frozen=True)
class Row:
    """Cells that differ in their seed only.

    Args:
        label: the loss, and the settings in which the row differs from others of its block.
        loss: name of the loss, or `start`.
        cells: by seed, unfinished ones included; the start has the single entry 0.
        is_start: the untouched starting model.
    """

    label: str
    loss: str
    cells: Mapping[int, CellRecord]
    is_start: bool = False


@dataclass(frozen=True)
class Block:
    """Rows that begin at one starting model.

    Args:
        model: its name.
        data: names of the training data.
        rows: the start first, then in the order of the sweep.
    """

    model: str
    data: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def start(self) -> Row | None:
        """The row of the untouched model, if it has a cell."""
        return next((row for row in self.rows if row.is_start), None)

    def baseline_of(self, row: Row) -> Row | str | None:
        """The `sft` row with the same settings outside the loss; or why there is none; None for `sft` and the start themselves."""
        if row.is_start or row.loss == BASELINE_LOSS:
            return None
        same = [other for other in self.rows if other.loss == BASELINE_LOSS and _surroundings(other) == _surroundings(row)]
        if len(same) == 1:
            return same[0]
        return f"n/a: no {BASELINE_LOSS} with these settings" if not same else f"n/a: {len(same)} {BASELINE_LOSS} rows fit"


def blocks_of(sweep: SweepRecord) -> list[Block]:
    """All cells of a sweep whose folder exists, as blocks of rows."""
    known = [cell for cell in sweep.cells if cell.cell]
    by_start: dict[str, list[CellRecord]] = {}
    for cell in known:
        by_start.setdefault(_start_key(cell), []).append(cell)
    starts = {_start_key(cell): cell for cell in sweep.starts if cell.cell}
    for key in starts:
        by_start.setdefault(key, [])
    return [_block(starts.get(key), cells) for key, cells in by_start.items()]


def _block(start: CellRecord | None, cells: Sequence[CellRecord]) -> Block:
    groups: dict[str, dict[int, CellRecord]] = {}
    for cell in cells:
        groups.setdefault(_text([_choice(cell, "loss"), settings_of(cell), _contents(cell)]), {})[int(cell.config["seed"])] = cell
    members = [dict(sorted(group.items())) for group in groups.values()]
    firsts = [next(iter(group.values())) for group in members]
    rows = [
        Row(" ".join([_choice(first, "loss"), *_differences(first, firsts)]), _choice(first, "loss"), group)
        for first, group in zip(firsts, members, strict=True)
    ]
    if start is not None:
        rows.insert(0, Row("start", "start", {0: start}, is_start=True))
    any_cell = firsts[0] if firsts else start
    model = _choice(any_cell, "model") if any_cell is not None else "unknown"
    return Block(model, tuple(dict.fromkeys(_choice(first, "data") for first in firsts)), tuple(rows))


def settings_of(cell: CellRecord) -> dict[str, Any]:
    """The settings that decide the trained weights, but for the seed, as `loss.beta: 0.1`."""
    science = cell.cell.get("science", cell.config)
    return dict(_flat({group: science.get(group) for group in GROUPS}))


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in sorted(node.items()):
        if key in SILENT_KEYS:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _differences(cell: CellRecord, cells: Sequence[CellRecord]) -> list[str]:
    """What tells this row from the others, as it would be written on the command line."""
    parts: list[str] = []
    for group in GROUPS:
        peers = [other for other in cells if group not in OWN_GROUPS or _choice(other, "loss") == _choice(cell, "loss")]
        if group != "loss" and len({_choice(other, group) for other in peers}) > 1:
            parts.append(f"{group}={_choice(cell, group)}")
        alike = [settings_of(other) for other in peers if _choice(other, group) == _choice(cell, group)]
        own = settings_of(cell)
        keys = {key: None for settings in alike for key in settings if key.split(".")[0] == group}
        parts += [f"{key}={_shown(own.get(key))}" for key in keys if len({_text(settings.get(key)) for settings in alike}) > 1]
    twins = [other for other in cells if settings_of(other) == settings_of(cell)]
    for name, content in sorted(_contents(cell).items()):
        if len({_contents(other).get(name) for other in twins}) > 1:
            parts.append(f"({name} content {content[:8]})")
    return parts


def _surroundings(row: Row) -> str:
    first = next(iter(row.cells.values()))
    settings = {key: value for key, value in settings_of(first).items() if key.split(".")[0] not in OWN_GROUPS}
    return _text([settings, _contents(first).get("data"), _contents(first).get("model")])


def _start_key(cell: CellRecord) -> str:
    return f"{_choice(cell, 'model')} {_contents(cell).get('model', '')}"


def _contents(cell: CellRecord) -> Mapping[str, str]:
    return cell.cell.get("content") or {}


def _choice(cell: CellRecord, group: str) -> str:
    return str(cell.choices.get(group, "unknown"))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else _text(value)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
