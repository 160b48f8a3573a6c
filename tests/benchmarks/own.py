"""Our side: `medvlm_dpo.training.train` as a cell runs it, with one more callback that stops between two steps."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from medvlm_dpo import training
from medvlm_dpo.callbacks import hosted
from medvlm_dpo.config.catalogue import compose_loss
from medvlm_dpo.data.encoding import encode_examples
from medvlm_dpo.metrics import LOSS, TRAIN, metric
from medvlm_dpo.objectives.terms import build_objective
from medvlm_dpo.reference import StartingReference
from medvlm_dpo.steps import layout_of_run
from medvlm_dpo.training import CellFiles, train
from tests.benchmarks.gate import Gate
from tests.benchmarks.world import SEED, backbone, lora_settings, make_pairs, read_shape, trainer_settings

BetweenSteps = Callable[[float | None], None]


class Steps(Callback):
    """Calls back before the first step and after every one; a step includes the preparation of its data."""

    def __init__(self, between: BetweenSteps) -> None:
        self._between = between

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._between(None)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._between(hosted(pl_module).metrics[metric(TRAIN, LOSS)])


def run(folder: Path, output: Path, between: BetweenSteps, *, loss: str = "dpo", **settings: Any) -> None:
    """A whole run on the benchmark's model.

    Args:
        folder: written by `world.write_model`.
        output: a new folder.
        between: called before the first step with None, after every other one with its loss.
        loss: a name of the catalogue.
        settings: of the trainer, in place of the shape's.
    """
    shape = read_shape(folder)
    chosen = trainer_settings(shape, **settings)
    model = backbone(folder)
    model.load()
    examples = make_pairs(shape, model.encoder)
    objective = build_objective(compose_loss([f"loss={loss}"]).node, batch_size=chosen.batch_size)
    output.mkdir(parents=True, exist_ok=True)
    start = StartingReference()
    with one_more_callback(Steps(between)):
        train(
            model,
            objective,
            start,
            {"train": encode_examples(examples, None, model.encoder), "validation": ()},
            start=start,
            layout=layout_of_run(model, chosen),
            adapter=lora_settings(shape),
            settings=chosen,
            seed=SEED,
            files=CellFiles(output / "checkpoint", output / "metrics.jsonl", output / "adapter"),
        )


def one_more_callback(callback: Callback) -> Any:
    """A patch under which training has one callback more: the run itself stays what users get, checks and metrics file included."""
    made = training._trainer
    return mock.patch.object(training, "_trainer", lambda callbacks, **rest: made([*callbacks, callback], **rest))


def main() -> None:
    """`python -m tests.benchmarks.own ARGUMENTS`, started by `gate.Side`."""
    gate, arguments = Gate(), json.loads(sys.argv[1])
    paths = {name: Path(arguments.pop(name)) for name in ("folder", "output")}
    gate.ready(threads=torch.get_num_threads())
    run(**paths, between=gate.between_steps, **arguments)


if __name__ == "__main__":
    main()
