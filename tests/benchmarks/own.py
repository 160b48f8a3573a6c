"""Our side: `medvlm_dpo.training.train` as a cell runs it, with one more callback that stops between two steps."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from medvlm_dpo import training
from medvlm_dpo.caches import starting_reference
from medvlm_dpo.callbacks import hosted
from medvlm_dpo.metrics import LOSS, TRAIN, metric
from medvlm_dpo.reference import AbstractReference, StartingReference
from medvlm_dpo.reference_cache import CachedReference
from medvlm_dpo.training import CellFiles, train
from tests.benchmarks.cell import Cell, make_cell, open_caches
from tests.benchmarks.gate import Gate
from tests.benchmarks.world import SEED, lora_settings

BetweenSteps = Callable[[float | None], None]


class Steps(Callback):
    """Calls back before the first step and after every one; a step includes the preparation of its data."""

    def __init__(self, between: BetweenSteps) -> None:
        self._between = between

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._between(None)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._between(hosted(pl_module).metrics[metric(TRAIN, LOSS)])


def run(cell: Cell, output: Path, between: BetweenSteps, *, caches: Path | None = None, seed: int = SEED) -> None:
    """A whole run.

    Args:
        cell: loaded, without adapter.
        output: a new folder.
        between: called before the first step with None, after every other one with its loss.
        caches: filled beforehand; None: the reference runs, and pictures are encoded, in every step.
        seed: of adapter and order.
    """
    start = StartingReference() if caches is None else starting_reference(open_caches(cell, caches)[0], cell.model)
    output.mkdir(parents=True, exist_ok=True)
    with one_more_callback(Steps(lambda loss: (refuse_computed(start), between(loss))[1])):
        train(
            cell.model,
            cell.objective,
            start,
            {"train": cell.examples, "validation": ()},
            start=start,
            layout=cell.layout,
            adapter=lora_settings(cell.shape),
            settings=cell.settings,
            seed=seed,
            files=CellFiles(output / "checkpoint", output / "metrics.jsonl", output / "adapter"),
        )


def refuse_computed(reference: AbstractReference) -> None:
    """A warm cache that was not warm would be measured as one."""
    if isinstance(reference, CachedReference) and reference.num_computed:
        raise RuntimeError(f"{reference.num_computed} micro-batches were not in the cache that was filled for them")


def one_more_callback(callback: Callback) -> Any:
    """A patch under which training has one callback more: the run itself stays what users get, checks and metrics file included."""
    made = training._trainer
    return mock.patch.object(training, "_trainer", lambda callbacks, **rest: made([*callbacks, callback], **rest))


def main() -> None:
    """`python -m tests.benchmarks.own ARGUMENTS`, started by `gate.Side`."""
    gate, arguments = Gate(), json.loads(sys.argv[1])
    folder, output = Path(arguments.pop("folder")), Path(arguments.pop("output"))
    caches = arguments.pop("caches", None)
    cell = make_cell(folder, **arguments)
    work = cell.needed_work()
    gate.ready(
        threads=torch.get_num_threads(), flops=work.flops(with_reference=caches is None), tokens=work.tokens, shape=asdict(cell.shape)
    )
    run(cell, output, gate.between_steps, caches=None if caches is None else Path(caches))


if __name__ == "__main__":
    main()
