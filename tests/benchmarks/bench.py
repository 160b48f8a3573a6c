"""`make bench`: our training step and TRL's, side by side in one run, as markdown tables.

Every side runs in a process of its own that stays alive; they do one step each in turn, never at the same time, so that a change of the
machine's pace meets all of them. Same random weights, initial adapter, pairs, batch order and schedule; float32; no checkpointing.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.gate import Side
from tests.benchmarks.shape import Shape
from tests.benchmarks.tables import Comparison, Measured, comparison_table, loss_table, surroundings

PEER = "TRL 1.16"
FIRST_LOSSES = 5


@dataclass(frozen=True)
class Entrant:
    """A side of a comparison.

    Args:
        name: in tables.
        module: run as a child.
        arguments: of the child besides its folders.
    """

    name: str
    module: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Target:
    """What one of our sides must reach on the main shape."""

    entrant: str
    speed: float
    memory: float = 0.4
    loss: float = 1e-4

    def verdicts(self, compared: Comparison) -> list[tuple[bool, str]]:
        """Whether each figure is met, with a line for the reader."""
        checks = [
            (compared.speed >= self.speed, f"{compared.speed:.2f} times TRL's pairs/s, wanted at least {self.speed}"),
            (compared.memory <= self.memory, f"{compared.memory:.2f} of TRL's peak memory, wanted at most {self.memory}"),
            (compared.loss_difference <= self.loss, f"losses within {compared.loss_difference:.1e}, wanted {self.loss:.0e}"),
        ]
        return [(met, f"{'met' if met else 'MISSED'}: {self.entrant}: {text}") for met, text in checks]


EACH_STEP = "ours, reference in every step"
ENTRANTS = (
    Entrant(PEER, "tests.benchmarks.peer"),
    Entrant(EACH_STEP, "tests.benchmarks.own"),
    Entrant("ours, plain layout", "tests.benchmarks.own", {"layout": "plain"}),
)
TARGETS = (Target(EACH_STEP, speed=3.5),)
MAIN = Shape(answer_tokens=50, vocabulary=32_000)
OTHERS = tuple(
    Shape(tokens, vocabulary) for vocabulary in (32_000, 152_000) for tokens in (10, 50, 100) if (tokens, vocabulary) != (50, 32_000)
)


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


def measure(shape: Shape, entrants: Sequence[Entrant], *, warm_up: int, timed: int, threads: int) -> list[Measured]:
    """All sides on one shape, one step each in turn; prints the profile of those that are asked for one.

    Args:
        shape: its `steps` are ignored, the run has as many as are measured and one for a profile.
        entrants: in the order of their turns.
        warm_up: steps before the timed ones.
        timed: steps that count.
        threads: of torch.
    """
    shape = Shape(**{**asdict(shape), "steps": max(FIRST_LOSSES, warm_up + timed) + 1})
    with model_folder(shape) as folder, ExitStack() as stack:
        sides = []
        for number, entrant in enumerate(entrants):
            arguments = {"folder": str(folder), "output": str(folder / f"side_{number}"), **entrant.arguments}
            sides.append(Side(entrant.name, entrant.module, arguments, threads=threads))
            stack.callback(sides[-1].stop)
        for step in range(warm_up + timed):
            for side in sides:
                done = side.step()
                print(f"  step {step + 1}: {side.name} {done['seconds']:.2f} s, loss {done['loss']:.6f}", file=sys.stderr, flush=True)
        results = [_measured(side, shape, warm_up) for side in sides]
        print_profiles(sides, results)
    return results


def _measured(side: Side, shape: Shape, warm_up: int) -> Measured:
    return Measured(
        side.name,
        shape,
        seconds=tuple(step["seconds"] for step in side.steps[warm_up:]),
        losses=tuple(step["loss"] for step in side.steps),
        peak_mb=max(step["peak_mb"] for step in side.steps),
    )


def verdicts(results: Sequence[Measured]) -> list[tuple[bool, str, str]]:
    """For every target whose side was measured: whether it is met, the side, a line."""
    by_name = {result.name: result for result in results}
    return [
        (met, target.entrant, line)
        for target in TARGETS
        if {target.entrant, PEER} <= by_name.keys()
        for met, line in target.verdicts(Comparison(by_name[target.entrant], by_name[PEER]))
    ]


def print_profiles(sides: Sequence[Side], results: Sequence[Measured]) -> None:
    """Where the time went, for both sides of a target that was missed on the main shape."""
    if (results[0].shape.answer_tokens, results[0].shape.vocabulary) != (MAIN.answer_tokens, MAIN.vocabulary):
        return
    missed = {name for met, name, _ in verdicts(results) if not met}
    for side in sides:
        if side.name in missed or (missed and side.name == PEER):
            operations = side.profile()
            total = sum(seconds for _, seconds, _ in operations)
            print(f"\nDearest operations of one step, {side.name} ({total:.1f} s together):\n")
            print("\n".join(f"* {seconds:6.2f} s in {calls} calls of {name}" for name, seconds, calls in operations))


def main() -> None:
    """Measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only answers of 50 tokens with 32,000 rows of vocabulary")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before the timed ones")
    parser.add_argument("--timed", type=int, default=4, help="timed steps on the main shape; half as many on the others")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    print(surroundings(chosen.threads) + "\n", flush=True)
    results = measure(MAIN, ENTRANTS, warm_up=chosen.warm_up, timed=chosen.timed, threads=chosen.threads)
    lines = verdicts(results)
    for shape in () if chosen.quick else OTHERS:
        results += measure(shape, ENTRANTS, warm_up=chosen.warm_up, timed=max(1, chosen.timed // 2), threads=chosen.threads)
    print("\n" + comparison_table(results, PEER) + "\n\nFirst losses:\n\n" + loss_table(results) + "\n")
    print("\n".join(line for _, _, line in lines))


if __name__ == "__main__":
    main()
