"""Runs sides of a comparison, each in a process of its own, one step each in turn. No torch here: the parent process stays small."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.benchmarks.gate import Side
from tests.benchmarks.shape import Shape
from tests.benchmarks.tables import Measured

FIRST_LOSSES = 5
OWN, PEER_MODULE, KEEPING = "tests.benchmarks.own", "tests.benchmarks.peer", "tests.benchmarks.keeping"


@dataclass(frozen=True)
class Entrant:
    """A side of a comparison.

    Args:
        name: in tables.
        module: run as a child.
        arguments: of the child besides its folders.
        kept: whether its caches are filled before it starts.
        most_timed: steps it does at most, warm-up left out.
    """

    name: str
    module: str = OWN
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    kept: bool = False
    most_timed: int = sys.maxsize


@dataclass(frozen=True)
class Ran:
    """What `measure` leaves: figures, and where the time went of those that were asked for it."""

    results: list[Measured]
    profiles: Mapping[str, list[tuple[str, float, int]]]
    flops: Mapping[str, float]


@contextmanager
def model_folder(shape: Shape) -> Iterator[Path]:
    """A folder with a model of this shape, made by a child and removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="medvlm_dpo_bench_"))
    try:
        made = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.world", str(folder), json.dumps(asdict(shape))],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        if made.returncode:
            raise RuntimeError(f"the model could not be made:\n{made.stderr}")
        yield folder
    finally:
        shutil.rmtree(folder)


def report(name: str, module: str, arguments: Mapping[str, Any], *, threads: int) -> dict[str, Any]:
    """What a child says that does its work without being told to step."""
    side = Side(name, module, arguments, threads=threads)
    try:
        return side.facts
    finally:
        side.stop()


def measure(
    folder: Path,
    shape: Shape,
    entrants: Sequence[Entrant],
    *,
    warm_up: int,
    timed: int,
    threads: int,
    changes: Mapping[str, Any] | None = None,
    wants_profile: Any = None,
) -> Ran:
    """All sides on one shape.

    Args:
        folder: of `model_folder`.
        shape: the folder's.
        entrants: in the order of their turns.
        warm_up: steps before the timed ones.
        timed: steps that count.
        threads: of torch.
        changes: of the shape, on which the weights do not depend.
        wants_profile: called with the results, gives the names of those that do one more step under the profiler.
    """
    changed = {**(changes or {}), "steps": max(FIRST_LOSSES, warm_up + timed) + 1}
    tried = replace(shape, **changed)
    with tempfile.TemporaryDirectory(dir=folder) as scratch, ExitStack() as stack:
        sides = [_started(entrant, folder, Path(scratch) / str(place), changed, threads) for place, entrant in enumerate(entrants)]
        for side in sides:
            stack.callback(side.stop)
        for side in sides:
            _ = side.facts  # two sides that start at once must not disturb a step
        for step in range(warm_up + timed):
            for side, entrant in zip(sides, entrants, strict=True):
                if step < warm_up + entrant.most_timed:
                    done = side.step()
                    _say(f"step {step + 1}: {side.name} {done['seconds']:.2f} s, loss {done['loss']:.6f}")
        results = [_measured(side, tried, warm_up) for side in sides]
        wanted = set(wants_profile(results)) if wants_profile is not None else set[str]()
        profiles = {side.name: side.profile() for side in sides if side.name in wanted}
        flops = {side.name: side.facts["flops"] for side in sides if "flops" in side.facts}
    return Ran(results, profiles, flops)


def _started(entrant: Entrant, folder: Path, output: Path, changes: Mapping[str, Any], threads: int) -> Side:
    arguments = {"folder": str(folder), "changes": changes, **entrant.arguments}
    if not entrant.kept:
        return Side(entrant.name, entrant.module, {**arguments, "output": str(output)}, threads=threads)
    caches = str(output.parent / "caches")
    filled = report(f"filling of the caches for {entrant.name}", KEEPING, {**arguments, "caches": caches}, threads=threads)
    _say(f"caches of {filled['pairs']} pairs there after {filled['pictures_s'] + filled['values_s']:.1f} s")
    return Side(entrant.name, entrant.module, {**arguments, "output": str(output), "caches": caches}, threads=threads)


def _measured(side: Side, shape: Shape, warm_up: int) -> Measured:
    return Measured(
        side.name,
        shape,
        seconds=tuple(step["seconds"] for step in side.steps[warm_up:]),
        losses=tuple(step["loss"] for step in side.steps),
        peak_mb=max(step["peak_mb"] for step in side.steps),
        processor_s=tuple(step["processor_s"] for step in side.steps[warm_up:]),
    )


def _say(text: str) -> None:
    print(f"\n  {text}", file=sys.stderr, flush=True)
