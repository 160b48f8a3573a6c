"""What each loss needed and what it cost, as the cells recorded it."""

from collections.abc import Iterable, Mapping
from typing import Any

from medvlm_dpo.report.cells import NOTHING
from medvlm_dpo.report.layout import Section
from medvlm_dpo.report.rows import Block, Row
from medvlm_dpo.statistics.intervals import Spread, mean_and_spread

SECONDS_PER_STEP = "seconds_per_step"
TOKENS = "tokens"
PEAK_MEMORY = "peak_memory_mb"
COSTS = (SECONDS_PER_STEP, TOKENS, PEAK_MEMORY)
HEADER = ("loss", "scored per example", "ref", "corrupted image,\nstatistics", "s per\nstep", "tokens", "peak\nMB")
NOTES = (
    "scored: the answers the policy scores for one example; * on the corrupted image, in brackets without gradient. ref: how many answers "
    "the reference scores, kl where its whole distribution is needed.",
    "Means over seeds, of the training alone. tokens: what the policy scored, padding left out. peak: memory of the whole process. Times "
    "depend on the machine and on what else it does.",
)


def needs_section(block: Block) -> Section | None:
    """Rows = losses; None when no cell has recorded anything of it. A result from before needs were recorded shows a dash for them."""
    rows = [row for row in block.rows if not row.is_start and any(cell.result.get("training") for cell in row.cells.values())]
    if not rows:
        return None
    title = f"What each loss needed and cost: {block.model}, data {', '.join(block.data)}"
    return Section(title, HEADER, tuple(_cells(row) for row in rows), NOTES)


def cost_spread(row: Row, name: str) -> Spread | None:
    """Mean and spread over seeds of one of `COSTS`; None where no cell measured it."""
    found = [_cost(cell.result.get("training") or {}, name) for cell in row.cells.values()]
    known = [value for value in found if value is not None]
    return mean_and_spread(known) if known else None


def _cost(training: Mapping[str, Any], name: str) -> float | None:
    if name != SECONDS_PER_STEP:
        return training.get(name)
    rate = training.get("steps_per_second")
    return 1 / rate if rate else None  # a cell that only had to be validated again made no step


def _cells(row: Row) -> tuple[str, ...]:
    cells = [cell for cell in row.cells.values() if cell.result.get("needs")]
    needed = _needed(cells[0].result["needs"], cells[0].choices.get("corruption", "")) if cells else (NOTHING,) * 3
    seconds, tokens, memory = (cost_spread(row, name) for name in COSTS)
    return (
        row.label,
        *needed,
        NOTHING if seconds is None else f"{seconds.mean:.3g}",
        *(NOTHING if spread is None else f"{spread.mean:,.0f}" for spread in (tokens, memory)),
    )


def _needed(needs: Mapping[str, Any], corruption: str) -> tuple[str, str, str]:
    live, still = (_views(needs[f"policy_{how}_gradient"]) for how in ("with", "without"))
    scored = live + (f", ({still})" if still else "")
    distributions = " kl" if needs["reference_distributions"] else ""
    reference = f"{len(needs['reference'])}{distributions}" if needs["reference"] else NOTHING
    made = [corruption] if needs["corrupted_views"] else []
    made += [source.rpartition(".")[2] for source in needs["statistics"].values() if isinstance(source, str)]
    return scored, reference, ", ".join(made) or NOTHING


def _views(names: Iterable[str]) -> str:
    return ", ".join(name.replace("_corrupt", "*") for name in names)
