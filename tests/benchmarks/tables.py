"""Markdown tables of what was measured. No torch here: the parent process stays small."""

import math
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks.shape import Shape

COMPARED_LOSSES = 5


@dataclass(frozen=True)
class Measured:
    """One side on one shape.

    Args:
        name: of the side.
        shape: what was trained.
        seconds: of every timed step, warm-up left out.
        losses: of all steps from the first, warm-up included.
        peak_mb: largest resident memory of its process.
        processor_s: seconds of processor time of every timed step, over all threads; what else the machine does hardly changes them.
    """

    name: str
    shape: Shape
    seconds: tuple[float, ...]
    losses: tuple[float, ...]
    peak_mb: float
    processor_s: tuple[float, ...] = ()

    @property
    def median_processor_s(self) -> float:
        """Of the timed steps; not a number where it was not measured."""
        return statistics.median(self.processor_s) if self.processor_s else math.nan

    @property
    def median_s(self) -> float:
        """Of the timed steps."""
        return statistics.median(self.seconds)

    @property
    def examples_per_second(self) -> float:
        """Pairs, by the median step."""
        return self.shape.batch_size / self.median_s


@dataclass(frozen=True)
class Comparison:
    """One side against the peer on the same shape, step by step in turn."""

    own: Measured
    peer: Measured

    @property
    def speed(self) -> float:
        """How many times as many examples a second."""
        return self.own.examples_per_second / self.peer.examples_per_second

    @property
    def memory(self) -> float:
        """Our peak over the peer's."""
        return self.own.peak_mb / self.peer.peak_mb

    @property
    def loss_difference(self) -> float:
        """Largest difference of two losses of the same step, among the first that both did."""
        return max(abs(own - peer) for own, peer in list(zip(self.own.losses, self.peer.losses, strict=False))[:COMPARED_LOSSES])

    @property
    def num_losses(self) -> int:
        """How many losses were compared."""
        return min(len(self.own.losses), len(self.peer.losses), COMPARED_LOSSES)


def comparison_table(measured: Sequence[Measured], peer_name: str) -> str:
    """Every side of every shape beside the peer on that shape."""
    peers = {result.shape: result for result in measured if result.name == peer_name}
    header = (
        "answer tokens", "vocabulary", "side", "s a step, median (min-max)", "CPU s", "pairs/s", "times TRL's", "by CPU s", "peak MB",
        "of TRL's", "largest difference of losses (of how many)",
    )  # fmt: skip
    rows = []
    for result in measured:
        compared = Comparison(result, peers[result.shape]) if result.shape in peers and result.name != peer_name else None
        speed, by_processor, memory, difference = _against(compared)
        rows.append(
            (str(result.shape.answer_tokens), f"{result.shape.vocabulary:,}", result.name, spread(result.seconds),
             f"{result.median_processor_s:.2f}", f"{result.examples_per_second:.3f}", speed, by_processor, f"{result.peak_mb:,.0f}", memory,
             difference)
        )  # fmt: skip
    return markdown(header, rows)


def _against(compared: Comparison | None) -> tuple[str, str, str, str]:
    if compared is None:
        return "1", "1", "1", "-"
    return (
        f"{compared.speed:.2f}",
        factor(compared.peer.median_processor_s, compared.own.median_processor_s),
        f"{compared.memory:.2f}",
        f"{compared.loss_difference:.1e} ({compared.num_losses})",
    )


def factor(slow_s: float, fast_s: float) -> str:
    """How many times as fast."""
    return f"{slow_s / fast_s:.2f}"


def loss_table(measured: Sequence[Measured], number: int = 5) -> str:
    """The first losses of every side that did as many steps."""
    header = ("answer tokens", "vocabulary", "side", *(f"step {step + 1}" for step in range(number)))
    rows = [
        (str(result.shape.answer_tokens), f"{result.shape.vocabulary:,}", result.name, *(f"{loss:.6f}" for loss in result.losses[:number]))
        for result in measured
        if len(result.losses) >= number
    ]
    return markdown(header, rows)


def spread(seconds: Sequence[float]) -> str:
    """`4.40 (4.31-4.62)`."""
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose columns are as wide as their longest cell."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in [lines[0], rule, *lines[1:]]
    )


def surroundings(threads: int, computed_in: str = "float32, no activation checkpointing") -> str:
    """Date, machine and versions, for the line above a table; the load says whether the machine was quiet."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "trl"))
    load = os.getloadavg()[0]
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {processor_name()}, {os.cpu_count()} cores, {threads} threads, load {load:.1f} at the start; "
        f"Python {platform.python_version()}, {libraries}; {computed_in}"
    )


def processor_name() -> str:
    """As the operating system calls it."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    names: Mapping[str, str] = dict(reversed([_pair(line) for line in lines if ":" in line]))
    return names.get("model name", platform.processor() or platform.machine())


def _pair(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip(), value.strip()
