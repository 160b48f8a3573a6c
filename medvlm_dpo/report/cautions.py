"""Warnings that cells left beside their numbers, gathered by loss."""

from medvlm_dpo.report.layout import Section
from medvlm_dpo.report.rows import Block, Row
from medvlm_dpo.results.ledger import CellRecord

KIND_WORDS = 3  # a warning's first words tell its kind; the numbers in it differ from seed to seed


def cautions_section(block: Block) -> Section | None:
    """Rows = losses and kinds of warnings, each with the sentence of its first seed; None without warnings."""
    rows = tuple(line for row in block.rows for line in _lines(row))
    if not rows:
        return None
    notes = tuple(f"{label}, {seeds}: {sentence}." for label, seeds, sentence in rows)
    return Section(f"Warnings: {block.model}, data {', '.join(block.data)}", notes=notes)


def _lines(row: Row) -> list[tuple[str, str, str]]:
    found: dict[str, list[tuple[int, str]]] = {}
    for seed, cell in sorted(row.cells.items()):
        for sentence in _cautions_of(cell):
            found.setdefault(" ".join(sentence.split()[:KIND_WORDS]), []).append((seed, sentence))
    return [(row.label, _seeds([seed for seed, _ in same], row), same[0][1]) for same in found.values()]


def _cautions_of(cell: CellRecord) -> list[str]:
    graded = [sentence for record in cell.evaluations.values() for sentence in record.scores.get("warnings", [])]
    return [*cell.result.get("warnings", []), *graded]


def _seeds(seeds: list[int], row: Row) -> str:
    """Which seeds, and that the sentence is the first one's."""
    distinct = sorted(set(seeds))
    if len(row.cells) == 1:
        return f"seed {distinct[0]}"
    return f"{len(distinct)} of {len(row.cells)} seeds, here {distinct[0]}"
