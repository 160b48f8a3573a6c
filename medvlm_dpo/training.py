"""One training run: from encoded examples to an adapter and its figures."""

import logging
import resource
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.plugins.environments import LightningEnvironment  # pyright: ignore[reportPrivateImportUsage] - its public place

from medvlm_dpo.backbones.adapter import LoraSettings
from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.callbacks import Checkpoints, GradientCheck, MetricsLog, ProgressBar, StartCheck, Validations, json_lines
from medvlm_dpo.checkpoint import load_newest
from medvlm_dpo.data.datamodule import PreferenceData
from medvlm_dpo.data.encoding import EncodedExample
from medvlm_dpo.data.segments import Layout
from medvlm_dpo.metrics import TRAIN, VALIDATION
from medvlm_dpo.module import PreferenceModule
from medvlm_dpo.objectives.terms import Objective
from medvlm_dpo.reference import AbstractReference
from medvlm_dpo.settings import TrainerSettings
from medvlm_dpo.steps import preference_data, step_maker, steps_of_run

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # preprocessing is cheap beside the model
    ".*IterableDataset.*has `__len__` defined.*",  # ours counts steps; workers are not used
    ".*in eval mode at the start of training.*",  # on purpose: dropout off, in policy and reference alike
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",  # Lightning 2.6 on torch 2.13
)
MIN_FINAL_STEPS = 10  # the reported training metrics are means over the last tenth of the steps, at least these


@dataclass(frozen=True)
class TrainedCell:
    """What a run leaves behind besides the adapter.

    Args:
        training: figures of the run: steps, examples, tokens, seconds, rate, memory.
        start_metrics: validation before the first step.
        metrics: training means over the last tenth of the steps (at least ten), and validation after the last step.
        validation_by_error_type: the diagnostics of that validation per error type, names without split.
    """

    training: dict[str, Any]
    start_metrics: dict[str, float]
    metrics: dict[str, float]
    validation_by_error_type: dict[str, dict[str, float]]


@dataclass(frozen=True)
class CellFiles:
    """Where a run writes.

    Args:
        checkpoints: folder of checkpoints.
        metrics: the metrics file.
        adapter: folder of the finished adapter.
    """

    checkpoints: Path
    metrics: Path
    adapter: Path


def train(  # noqa: PLR0913 - the parts of a cell, each by name
    backbone: AbstractBackbone,
    objective: Objective,
    reference: AbstractReference,
    splits: Mapping[str, tuple[EncodedExample, ...]],
    *,
    start: AbstractReference,
    layout: Layout,
    adapter: LoraSettings,
    settings: TrainerSettings,
    seed: int,
    files: CellFiles,
) -> TrainedCell:
    """Trains a fresh adapter, or goes on from the newest checkpoint, and saves the adapter.

    Args:
        backbone: loaded, without adapter.
        objective: what to minimise.
        reference: serves the reference's values when the objective asks.
        splits: encoded examples, `train` and `validation`; an empty validation split skips validation.
        start: serves the starting model's values, which validation compares with.
        layout: how sequences become rows.
        adapter: what to train.
        settings: how.
        seed: of the adapter's random half and of the order of examples.
        files: where to write.
    """
    backbone.add_adapter(adapter, seed=seed)
    if settings.activation_checkpointing:
        backbone.checkpoint_activations()
    steps = steps_of_run(len(splits["train"]), settings)
    module = PreferenceModule(backbone, objective, reference, settings, num_steps=steps, start=start)
    resumed = load_newest(files.checkpoints, backbone, module.optimizer)
    if resumed is not None:
        print(f"resuming after step {resumed.step}")
        module.step, module.num_tokens, module.statistics_states = resumed.step, resumed.num_tokens, resumed.statistics
        reference.restore(resumed.reference)
    print(f"order: {settings.order}")
    maker = step_maker(backbone, layout, settings, objective.demand.views, seed=seed)
    data = preference_data(splits, maker, objective.demand, settings, first_step=module.step)
    seconds = _fit(module, data, settings, files, steps=steps)
    backbone.save_adapter(files.adapter)
    lines = json_lines(files.metrics)
    return TrainedCell(
        training={
            "steps": steps,
            "examples": steps * settings.batch_size,
            "order": settings.order,
            "layout": layout.name,
            "tokens": module.num_tokens,
            "seconds": round(seconds, 2),
            "steps_per_second": round(len(data.training) / seconds, 3),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "trainable_parameters": sum(weight.numel() for weight in backbone.trainable().values()),
            "resumed_after_step": resumed.step if resumed is not None else None,
        },
        start_metrics=_validation(lines[:1]),
        metrics=_final_training(lines, steps) | _validation(lines[-1:]),
        validation_by_error_type=module.by_error_type,
    )


def _fit(module: PreferenceModule, data: PreferenceData, settings: TrainerSettings, files: CellFiles, *, steps: int) -> float:
    """Validates, trains, validates; returns the seconds of training, without the two validations around it."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    metrics_log = MetricsLog(files.metrics, first_step=module.step, num_steps=steps)
    callbacks: list[Callback] = [
        StartCheck(),
        GradientCheck(settings.learning_rate),
        metrics_log,
        ProgressBar(num_steps=steps, first_step=module.step),
    ]
    if settings.validate_every_steps is not None and len(data.validation):
        callbacks.append(Validations(data, metrics_log, every_steps=settings.validate_every_steps, num_steps=steps))
    callbacks.append(Checkpoints(files.checkpoints, every_steps=settings.checkpoint_every_steps, every_min=settings.checkpoint_every_min))
    validator = _trainer([metrics_log])
    with warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        if module.step == 0 and len(data.validation):
            validator.validate(module, datamodule=data, verbose=False)
        started = time.monotonic()
        if module.step < steps:
            _trainer(callbacks, limit_val_batches=0).fit(module, datamodule=data)
        seconds = time.monotonic() - started
        if len(data.validation):
            validator.validate(module, datamodule=data, verbose=False)
    return seconds


def _trainer(callbacks: list[Callback], *, limit_val_batches: int | None = None) -> Trainer:
    return Trainer(
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        devices=1,
        max_epochs=1,  # one pass over the loader, whose items are the steps of the whole run
        limit_val_batches=limit_val_batches,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        plugins=[LightningEnvironment()],  # Lightning must not look for SLURM: checkpoints and requeueing are ours
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _validation(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {name: value for line in lines for name, value in line.items() if name.startswith(f"{VALIDATION}/")}


def _final_training(lines: Sequence[Mapping[str, Any]], steps: int) -> dict[str, float]:
    first = steps - max(MIN_FINAL_STEPS, steps // 10)
    final = [line for line in lines if line["step"] > first]
    names = {name for line in final for name in line if name.startswith(f"{TRAIN}/")}
    return {name: statistics.fmean(line[name] for line in final if name in line) for name in sorted(names)}
