"""Fills the caches of a cell, as a sweep does before its cells start, and says what that took; a process of its own, as there."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medvlm_dpo.data.encoding import EncodedExample
from medvlm_dpo.objectives.demand import Demand
from medvlm_dpo.reference_cache import columns_of
from medvlm_dpo.reference_fill import ReferenceFill, Work
from medvlm_dpo.steps import step_maker
from medvlm_dpo.vocab import Batch
from tests.benchmarks.cell import Cell, make_cell, open_caches
from tests.benchmarks.gate import Gate
from tests.benchmarks.world import SEED


def fill(cell: Cell, folder: Path) -> dict[str, Any]:
    """Pictures and reference values of all pairs; what is there is spot-checked and not computed again.

    Args:
        cell: loaded, without adapter.
        folder: of the caches.

    Returns:
        `pairs`, `pictures`, and of pictures and values the seconds and the megabytes (10^6 bytes) that came.
    """
    store, pictures = open_caches(cell, folder)
    images = [image for example in cell.examples for image in (example.image, example.corrupted) if image is not None]
    empty, started = size_mb(folder), time.perf_counter()
    refused = pictures.fill(images, _quiet)
    if refused is not None:
        raise RuntimeError(refused)
    with_pictures, encoded = size_mb(folder), time.perf_counter()
    work = reference_fill(cell)
    missing = work.missing(store)
    work.difference(store)
    work.fill(store, _quiet)
    return {
        "pairs": len(cell.examples),
        "pictures": len({image.content_hash() for image in images}),
        "computed": missing,
        "pictures_s": encoded - started,
        "pictures_mb": with_pictures - empty,
        "values_s": time.perf_counter() - encoded,
        "values_mb": size_mb(folder) - with_pictures,
    }


def reference_fill(cell: Cell) -> ReferenceFill:
    """The pass that computes what the cell's loss asks of the reference in training."""
    maker = step_maker(cell.model, cell.layout, cell.settings, frozenset(), seed=SEED)

    def collated(examples: Sequence[EncodedExample], views: frozenset[str]) -> Sequence[Batch]:
        return replace(maker, views=views).make(0, examples).batches

    demand: Demand = cell.objective.demand
    return ReferenceFill(cell.model, collated, [Work(cell.examples, columns_of(demand.tensors))])


def _quiet(done: int, total: int) -> None:
    """No progress bar."""


def size_mb(folder: Path) -> float:
    """10^6 bytes of the files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def main() -> None:
    """`python -m tests.benchmarks.keeping ARGUMENTS`, started by `gate.Side`."""
    gate, arguments = Gate(), json.loads(sys.argv[1])
    folder, caches = Path(arguments.pop("folder")), Path(arguments.pop("caches"))
    gate.ready(**fill(make_cell(folder, **arguments), caches))


if __name__ == "__main__":
    main()
