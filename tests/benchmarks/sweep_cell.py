"""One cell of a sweep from its loaded model to its adapter: first what a sweep computes beforehand, then training."""

import json
import sys
import time
from pathlib import Path

from tests.benchmarks.cell import make_cell
from tests.benchmarks.gate import Gate
from tests.benchmarks.keeping import fill
from tests.benchmarks.own import run


def _on(loss: float | None) -> None:
    """Nothing stops between two steps."""


def main() -> None:
    """`python -m tests.benchmarks.sweep_cell ARGUMENTS`, started by `gate.Side`."""
    gate, arguments = Gate(), json.loads(sys.argv[1])
    folder, output, caches = (Path(arguments.pop(name)) for name in ("folder", "output", "caches"))
    seed = arguments.pop("seed")
    cell = make_cell(folder, **arguments)
    started = time.perf_counter()
    filled = fill(cell, caches)
    prepared = time.perf_counter()
    run(cell, output, _on, caches=caches, seed=seed)
    gate.ready(**filled, precompute_s=prepared - started, training_s=time.perf_counter() - prepared)


if __name__ == "__main__":
    main()
