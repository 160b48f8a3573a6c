"""The parts of `make bench`: each measures, then gives its tables."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.benchmarks.measuring import OWN, PEER_MODULE, Entrant, measure, model_folder, report
from tests.benchmarks.shape import Shape
from tests.benchmarks.tables import Measured, comparison_table, factor, loss_table, markdown, spread
from tests.benchmarks.targets import EACH_STEP, MAIN, PEER, WARM, missed, profile_lines, verdicts

ANSWERS_ONLY = f"{PEER}, head on answers only (our patch: what it does on CUDA)"
PLAIN = "ours, plain layout, reference in every step"
SIDES = (
    Entrant(PEER, PEER_MODULE),
    Entrant(PLAIN, arguments={"layout": "plain"}, most_timed=2),
    Entrant(EACH_STEP),
    Entrant(WARM, kept=True),
)
PATCHED = Entrant(ANSWERS_ONLY, PEER_MODULE, {"answers_only": True}, most_timed=2)
ANSWER_TOKENS, VOCABULARIES = (10, 50, 100), (32_000, 152_000)
LOSSES, MICRO_BATCHES = ("mdpo", "kto"), (1, 2, 4)
BATCH_SIZES, TREE_SIZES = (1, 2, 4, 8), (1, 2, 4)
OTHER_BATCH_SIZE = 1  # pairs a step of the shapes beside the main one, to keep the whole run short


@dataclass(frozen=True)
class Effort:
    """How long to measure, on what.

    Args:
        warm_up: steps before the timed ones.
        timed: timed steps of the main shape.
        threads: of torch.
        main: the main shape; smaller in tests.
        quick: the main shape alone.
    """

    warm_up: int = 1
    timed: int = 5
    threads: int = 2
    main: Shape = MAIN
    quick: bool = False

    def steps(self, timed: int | None = None) -> dict[str, Any]:
        """For `measure`."""
        return {"warm_up": self.warm_up, "timed": self.timed if timed is None else min(timed, self.timed), "threads": self.threads}


def main_section(effort: Effort) -> Iterable[str]:
    """DPO against TRL."""
    with model_folder(effort.main) as folder:
        ran = measure(folder, effort.main, [*SIDES, PATCHED], **effort.steps(), wants_profile=missed)
    yield "### dpo against TRL\n\n" + comparison_table(ran.results, PEER)
    yield "First losses:\n\n" + loss_table(ran.results) + "\n"
    yield "\n".join(f"* {line}" for _, _, line in verdicts(ran.results))
    yield from profile_lines(ran, threads=effort.threads)
    if effort.quick:
        return
    results: list[Measured] = []
    for vocabulary in VOCABULARIES:
        shape = replace(effort.main, vocabulary=vocabulary)
        with model_folder(shape) as folder:
            for tokens in ANSWER_TOKENS:
                changes = {"answer_tokens": tokens, "batch_size": OTHER_BATCH_SIZE}
                if replace(shape, answer_tokens=tokens) != effort.main:
                    results += measure(folder, shape, SIDES, **effort.steps(1), changes=changes).results
    yield f"\nOther shapes, {OTHER_BATCH_SIZE} pair a step, one timed step:\n\n" + comparison_table(results, PEER)


def losses_section(effort: Effort) -> Iterable[str]:
    """Losses that TRL does not have: packed against our plain layout, the batch whole and in micro-batches."""
    shape = replace(effort.main, hidden=effort.main.hidden // 2, intermediate=effort.main.intermediate // 2, heads=effort.main.heads // 2)
    rows = []
    with model_folder(shape) as folder:
        for loss in LOSSES:
            entrants = [
                Entrant(f"{loss}, {layout}, {parts} micro-batches", arguments={"loss": loss, "layout": layout, **_cut(shape, parts)})
                for parts in MICRO_BATCHES
                for layout in ("plain", "auto")
            ]
            results = measure(folder, shape, entrants, **effort.steps(2)).results
            for parts, plain, packed in zip(MICRO_BATCHES, results[::2], results[1::2], strict=True):
                difference = max(abs(one - other) for one, other in zip(plain.losses, packed.losses, strict=True))
                rows.append(
                    (loss, str(parts), spread(plain.seconds), spread(packed.seconds), factor(plain.median_s, packed.median_s),
                     factor(plain.median_processor_s, packed.median_processor_s), f"{plain.peak_mb:,.0f}", f"{packed.peak_mb:,.0f}",
                     f"{difference:.1e}")
                )  # fmt: skip
    header = (
        "loss", "micro-batches", "plain: s a step", "packed: s a step", "speed", "by CPU s", "plain: peak MB", "packed: peak MB",
        "largest difference of losses",
    )  # fmt: skip
    said = f"hidden size {shape.hidden}, batches of {shape.batch_size}, reference in every step"
    yield f"### Other losses: packed rows against our plain layout ({said})\n\n" + markdown(header, rows)


def _cut(shape: Shape, parts: int) -> dict[str, Any]:
    return {"micro_batch_size": shape.batch_size // parts, "micro_batch_tokens": None}


def scaling_section(effort: Effort) -> Iterable[str]:
    """Pairs a second of the default configuration against batch size and questions per picture."""
    with model_folder(effort.main) as folder:

        def row(arguments: dict[str, Any], changes: dict[str, Any]) -> Sequence[str]:
            entrant = Entrant(WARM, OWN, arguments, kept=True)
            result = measure(folder, effort.main, [entrant], **effort.steps(2), changes=changes).results[0]
            processor_s = f"{result.median_processor_s:.2f}"
            return spread(result.seconds), processor_s, f"{result.examples_per_second:.3f}", f"{result.peak_mb:,.0f}"

        by_batch = [(str(size), *row({}, {"batch_size": size})) for size in BATCH_SIZES]
        trees = [(str(size), *row({"order": "image_tree"}, {"questions_per_image": size})) for size in TREE_SIZES]
    figures = ("s a step, median (min-max)", "CPU s", "pairs/s", "peak MB")
    yield "### Batch size (warm caches)\n\n" + markdown(("pairs a step", *figures), by_batch)
    said = f"(warm caches, order=image_tree, {effort.main.batch_size} pairs a step)"
    yield f"\n### Questions per picture {said}\n\n" + markdown(("questions per picture", *figures), trees)


def sweep_section(effort: Effort) -> Iterable[str]:
    """The first and the second cell of a sweep, and how fast the caches fill."""
    changes = {"batch_size": 2 * effort.main.batch_size, "steps": 2}
    with model_folder(effort.main) as folder:
        shared = {"folder": str(folder), "changes": changes}
        caches = [{**shared, "caches": str(folder / name)} for name in ("caches", "hidden_caches")]
        cells = [
            report(name, "tests.benchmarks.sweep_cell", {**caches[0], "output": str(folder / name), "seed": seed}, threads=effort.threads)
            for seed, name in enumerate(("first", "second"))
        ]
        hidden = report("tdpo1", "tests.benchmarks.keeping", {**caches[1], "loss": "tdpo1"}, threads=effort.threads)
    said = f"dpo, two seeds, {cells[0]['pairs']} pairs, one pass; from the loaded model to the adapter"
    rows = []
    for name, cell in zip(("first", "second"), cells, strict=True):
        whole = cell["precompute_s"] + cell["training_s"]
        share = f"{100 * cell['precompute_s'] / whole:.0f} %"
        rows.append((name, f"{whole:.1f}", f"{cell['precompute_s']:.1f}", share, f"{cell['training_s']:.1f}", str(cell["computed"])))
    header = ("cell", "s", "of these precompute", "share", "training", "arrays computed")
    yield f"### A sweep ({said})\n\n" + markdown(header, rows)
    fills = [
        ("pictures", *_rate(cells[0]["pictures"], cells[0]["pictures_s"], cells[0]["pictures_mb"])),
        ("reference values, dpo", *_rate(cells[0]["pairs"], cells[0]["values_s"], cells[0]["values_mb"])),
        ("reference values and hidden states, tdpo1", *_rate(hidden["pairs"], hidden["values_s"], hidden["values_mb"])),
    ]
    yield "\n### Filling the caches\n\n" + markdown(("what", "pairs (pictures) a second", "MB per 1,000"), fills)


def _rate(number: int, seconds: float, megabytes: float) -> tuple[str, str]:
    return f"{number / seconds:.2f}", f"{1000 * megabytes / number:,.2f}"


SECTIONS = {"main": main_section, "losses": losses_section, "scaling": scaling_section, "sweep": sweep_section}
