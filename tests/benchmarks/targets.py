"""What our sides must reach on the main shape, and where the time went when they do not."""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.benchmarks.measuring import Ran
from tests.benchmarks.shape import Shape
from tests.benchmarks.tables import Comparison, Measured

PEER = "TRL 1.16"
EACH_STEP = "ours, reference in every step"
WARM = "ours, warm caches"
MAIN = Shape(answer_tokens=50, vocabulary=32_000)


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


TARGETS = (Target(EACH_STEP, speed=3.5), Target(WARM, speed=5.0))


def verdicts(results: Sequence[Measured]) -> list[tuple[bool, str, str]]:
    """For every target whose side was measured: whether it is met, the side, a line."""
    by_name = {result.name: result for result in results}
    return [
        (met, target.entrant, line)
        for target in TARGETS
        if {target.entrant, PEER} <= by_name.keys()
        for met, line in target.verdicts(Comparison(by_name[target.entrant], by_name[PEER]))
    ]


def missed(results: Sequence[Measured]) -> set[str]:
    """Sides whose profile is wanted: those that missed a target, and then the peer."""
    names = {name for met, name, _ in verdicts(results) if not met}
    return names | {PEER} if names else names


def profile_lines(ran: Ran, *, threads: int) -> Iterable[str]:
    """The dearest operations of one more step, and how much of the step a plain matrix product would take."""
    for result in ran.results:
        if result.name not in ran.profiles:
            continue
        yield f"\nDearest operations of one step, {result.name}:\n"
        yield from (f"* {seconds:6.2f} s in {calls} calls of {name}" for name, seconds, calls in ran.profiles[result.name])
        if result.name in ran.flops:
            shape = result.shape
            pace = matmul_pace(
                (shape.image_tokens + shape.text_tokens + 2 * shape.answer_tokens, shape.hidden, shape.intermediate), threads
            )
            seconds = ran.flops[result.name] / pace
            yield (
                f"* needed: {ran.flops[result.name] / 1e9:,.0f} GFLOP of matrix products, at {pace / 1e9:,.0f} GFLOP/s (a "
                f"product of this shape) {seconds:.2f} s, {100 * seconds / result.median_s:.0f} % of the median step"
            )


def matmul_pace(sizes: tuple[int, int, int], threads: int) -> float:
    """Floating-point operations a second of a float32 product of this shape, measured now in a child."""
    command = [sys.executable, "-m", "tests.benchmarks.work", *map(str, sizes), str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["flops_per_s"]
