"""Sections of a report as plain aligned text for a terminal, and as markdown."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH = 132
GAP = "   "


@dataclass(frozen=True)
class Section:
    """A titled table with sentences under it.

    Args:
        title: one line.
        header: the names of the columns; a name may hold line breaks.
        rows: cells, each row as long as the header.
        notes: sentences under the table.
    """

    title: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()


def as_text(sections: Sequence[Section]) -> str:
    """Aligned columns, no wider than `WIDTH`: columns that do not fit continue below, with the first one repeated."""
    return "\n\n".join("\n".join(_section_lines(section)) for section in sections) + "\n"


def as_markdown(sections: Sequence[Section]) -> str:
    """Headings and pipe tables."""
    return "\n\n".join("\n".join(_markdown_lines(section)) for section in sections) + "\n"


def _section_lines(section: Section) -> list[str]:
    lines = [section.title, "-" * min(len(section.title), WIDTH)]
    if section.rows:
        for part, columns in enumerate(_fitting_columns(section)):
            lines += ([""] if part else []) + _table_lines(section, columns)
        lines += [""] if section.notes else []
    for note in section.notes:
        lines += textwrap.wrap(note, WIDTH, subsequent_indent="  ")
    return lines


def _table_lines(section: Section, columns: Sequence[int]) -> list[str]:
    widths = _widths(section)
    names = [section.header[column].split("\n") for column in columns]
    deepest = max(map(len, names))
    grid = [[name[line] if line < len(name) else "" for name in names] for line in range(deepest)]
    grid += [[row[column] for column in columns] for row in section.rows]
    return [GAP.join(cell.ljust(widths[column]) for cell, column in zip(row, columns, strict=True)).rstrip() for row in grid]


def _fitting_columns(section: Section) -> list[list[int]]:
    widths = _widths(section)
    parts = [[0]]
    used = widths[0]
    for column in range(1, len(widths)):
        used += len(GAP) + widths[column]
        if used > WIDTH and len(parts[-1]) > 1:
            parts.append([0])
            used = widths[0] + len(GAP) + widths[column]
        parts[-1].append(column)
    return parts


def _widths(section: Section) -> list[int]:
    cells = [[name, *(row[column] for row in section.rows)] for column, name in enumerate(section.header)]
    return [max(len(line) for cell in column for line in cell.split("\n")) for column in cells]


def _markdown_lines(section: Section) -> list[str]:
    lines = [f"## {section.title}", ""]
    if section.rows:
        lines += [_pipes(name.replace("\n", " ") for name in section.header), _pipes("---" for _ in section.header)]
        lines += [*(_pipes(row) for row in section.rows), ""]
    return lines + [f"* {note}" for note in section.notes]


def _pipes(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
