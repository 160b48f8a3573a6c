"""Losses in words: for a terminal (`task=describe`), and as a page (`python -m medvlm_dpo.describe docs/objectives.md`)."""

import argparse
import importlib
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from medvlm_dpo.config.catalogue import CatalogueLoss, catalogue, compose_loss, loss_names
from medvlm_dpo.errors import InputError
from medvlm_dpo.files import write_bytes_atomic
from medvlm_dpo.objectives.introduction import INTRODUCTION
from medvlm_dpo.objectives.sheets import SUMS, Sheet, sheet_of
from medvlm_dpo.objectives.words import Entry, cost_text, entries_of, estimator_title, sum_formula, title_of

NARROWEST = 60
LABEL_WIDTH = 13
BATCH_SIZE = 8  # nothing on the page depends on it
COLUMNS = ("loss", "formula", "rejected", "reference", "corrupted image", "statistics", "pair weights", "scored per example", "cost")


def describe(configs: Sequence[dict[str, Any]], *, width: int) -> str:
    """The loss of every configuration in words, each once.

    Args:
        configs: composed configurations; of each `loss`, `choices` and the trainer's `batch_size` are read.
        width: columns of the text, at least 60.

    Raises:
        InputError: a width too small, or losses that cannot be built, with all their problems.
    """
    if width < NARROWEST:
        raise InputError(f"task.settings.width: expects at least {NARROWEST} columns, got {width}")
    texts: dict[str, None] = {}
    problems: dict[str, None] = {}
    for config in configs:
        try:
            sheet = _told(config)
        except InputError as error:
            problems |= dict.fromkeys(error.problems)
        else:
            texts[_as_text(sheet, width)] = None
    if problems:
        raise InputError(problems)
    return "\n\n".join(texts)


def _told(config: Mapping[str, Any]) -> Sheet:
    """The sheet of a command's loss, which knows whether the command changed the terms of one of the catalogue."""
    choices, node = config["choices"], config["loss"]
    name, batch_size = str(choices["loss"]), config["trainer"]["batch_size"]
    corruption = str(choices["corruption"]) + _settings_text(config.get("corruption", {}))
    sheet = sheet_of(name, node, corruption=corruption, reference=str(choices["reference"]), batch_size=batch_size)
    changed = False
    if sheet.terms and (shipped := _shipped(name)) is not None:
        changed = _make(sheet) != _make(sheet_of(name, shipped.node, corruption="", reference="", batch_size=batch_size))
    return replace(sheet, is_changed=changed, see_also=_see_also(sheet, _shipped))


@cache
def _shipped(name: str) -> CatalogueLoss | None:
    """The loss of that name as it ships; None for a user's own."""
    return compose_loss([f"loss={name}"]) if name in loss_names() else None


def _make(sheet: Sheet) -> dict[str, tuple[float, tuple[str, ...]]]:
    """What a sum is made of: by term its weight and its settings; a shared setting counts as such, whatever its value."""
    shared = {(setting.key, setting.value) for setting in sheet.settings}
    return {
        term.name: (term.weight, tuple("" if (key, value) in shared else f"{key} {value}" for key, value, _ in term.settings))
        for term in sheet.terms
    }


def _see_also(sheet: Sheet, find: Callable[[str], CatalogueLoss | None]) -> str:
    """The loss that the card names as the released behaviour, with its title where the catalogue has it."""
    released = sheet.card.released if sheet.card else ""
    found = find(released)
    return released if found is None else f"{released}: {found.node['card']['title']}"


def _settings_text(node: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in node.items() if not key.startswith("_") and key != "kind")
    return f" ({settings})" if settings else ""


def _as_text(sheet: Sheet, width: int) -> str:
    heading = textwrap.wrap(f"{sheet.name}: {title_of(sheet)}", width)
    lines = [*heading, "-" * max(map(len, heading))]
    for entry in entries_of(sheet):
        for number, line in enumerate(entry.lines):
            label = entry.label if number == 0 else ""
            lines += textwrap.wrap(
                line,
                width,
                initial_indent=label.ljust(LABEL_WIDTH),
                subsequent_indent=" " * (LABEL_WIDTH + 2),
                break_long_words=False,
                break_on_hyphens=False,
            )
    return "\n".join(lines)


# --- the page ----------------------------------------------------------------------------------------------------------

USES: tuple[tuple[str, Callable[[Sheet], bool]], ...] = (
    ("accept examples without a rejected answer", lambda sheet: "rejected" not in sheet.needs["required_answers"]),
    ("accept examples without a chosen answer", lambda sheet: "chosen" not in sheet.needs["required_answers"]),
    ("need no reference", lambda sheet: not sheet.needs["reference"]),
    ("look at the answer on a corrupted image", lambda sheet: bool(sheet.needs["corrupted_views"])),
    ("need a weight of every pair in the data", lambda sheet: "pair_weight" in sheet.needs["facts"]),
    ("need the reference's whole distribution", lambda sheet: bool(sheet.needs["reference_distributions"])),
)


def page() -> str:
    """The whole page as markdown: introduction, a table of all losses, and every loss by family.

    Raises:
        InputError: with the problems of every loss that cannot be built.
    """
    sheets = _catalogue_sheets()
    estimators = {source for sheet in sheets for source in sheet.needs["statistics"].values() if isinstance(source, str)}
    evidence = Counter(sheet.card.evidence for sheet in sheets if sheet.card)
    introduction = INTRODUCTION.format(
        paper=evidence["paper"],
        official=evidence["official code"],
        derived=evidence["derived"],
        choices="\n".join(_choices(sheets)),
        statistics="\n".join(f"* `{source.rpartition('.')[2]}`: {_prose(estimator_title(source))}" for source in sorted(estimators)),
    )
    parts = [introduction, "## All losses\n", *_overview(sheets)]
    by_family = sorted(sheets, key=lambda sheet: (sheet.family == SUMS, sheet.family, sheet.name))
    for family, members in groupby(by_family, key=lambda sheet: sheet.family):
        parts += [f"\n## Family {family}\n", _family_words(family)]
        parts += [line for sheet in members for line in _markdown(sheet)]
    return "\n".join(parts) + "\n"


def _catalogue_sheets() -> list[Sheet]:
    sheets: list[Sheet] = []
    problems: list[str] = []
    for name, loss in catalogue().items():
        try:
            sheet = sheet_of(name, loss.node, corruption=loss.corruption, reference=loss.reference, batch_size=BATCH_SIZE)
            sheets.append(replace(sheet, see_also=_see_also(sheet, catalogue().get)))
        except InputError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
    if problems:
        raise InputError(problems)
    return sheets


def _choices(sheets: Sequence[Sheet]) -> Iterator[str]:
    for words, fits in USES:
        names = [_link(sheet) for sheet in sheets if fits(sheet)]
        yield f"* {len(names)} {words}: {', '.join(names) or 'none'}"


def _overview(sheets: Sequence[Sheet]) -> Iterator[str]:
    yield f"{len(sheets)} losses.\n"
    yield _row(COLUMNS)
    yield _row("---" for _ in COLUMNS)
    yield from (_row(_overview_cells(sheet)) for sheet in sheets)


def _overview_cells(sheet: Sheet) -> Iterator[str]:
    needs = sheet.needs
    scored = needs["answers_scored"]
    yield _link(sheet)
    yield _code(" ".join(sheet.card.formula.split())) if sheet.card else _code(sum_formula(sheet)) if sheet.terms else ""
    yield "yes" if "rejected" in needs["required_answers"] else "may lack" if "rejected_present" in needs["facts"] else ""
    yield sheet.reference if needs["reference"] else ""
    yield sheet.corruption if needs["corrupted_views"] else ""
    yield ", ".join(source.rpartition(".")[2] for source in needs["statistics"].values() if isinstance(source, str))
    yield "yes" if "pair_weight" in needs["facts"] else ""
    yield " + ".join(str(number) for number in scored.values()) + (" \\*" if needs["measured_first"] else "")
    yield cost_text(sheet)


def _markdown(sheet: Sheet) -> Iterator[str]:
    yield f"\n### {sheet.name}\n\n{_prose(title_of(sheet))}\n"
    for entry in entries_of(sheet):
        yield from _markdown_entry(entry)


def _markdown_entry(entry: Entry) -> Iterator[str]:
    lines = [_code(line) if entry.is_formula else _prose(line) for line in entry.lines]
    if len(lines) == 1:
        yield f"* **{entry.label}**: {lines[0]}"
        return
    yield f"* **{entry.label}**"
    yield from (f"  * {line}" for line in lines)


def _family_words(family: str) -> str:
    if family == SUMS:
        return "Weighted sums, written in yaml alone."
    return str(importlib.import_module(f"medvlm_dpo.objectives.{family}").__doc__).partition("\n")[0]


def _link(sheet: Sheet) -> str:
    return f"[{sheet.name}](#{sheet.name})"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"


def _prose(text: str) -> str:
    """Words of a card as markdown: outside code its signs are signs, not emphasis or tags."""
    parts = text.split("`")
    return "`".join(_escaped(part) if number % 2 == 0 else part for number, part in enumerate(parts))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("*", "\\*").replace("<", "&lt;")


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page; 1 when it was only checked and is stale, 2 when a loss cannot be built."""
    parser = argparse.ArgumentParser(prog="python -m medvlm_dpo.describe", description="Writes the page of all losses.")
    parser.add_argument("file", type=Path, help="the page, docs/objectives.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the page is not what would be written")
    given = parser.parse_args(arguments)
    try:
        made = page().encode()
    except InputError as error:
        sys.stderr.write("".join(f"error: {problem}\n" for problem in error.problems))
        return 2
    if not given.check:
        write_bytes_atomic(given.file, made)
    elif not given.file.is_file() or given.file.read_bytes() != made:
        sys.stderr.write(f"{given.file} is stale: run `make docs` and commit it\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
