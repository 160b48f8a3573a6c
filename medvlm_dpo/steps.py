"""From encoded examples and settings to the optimiser steps of a run: the same for training and for what is computed before it."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from medvlm_dpo import ranks
from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.data.datamodule import PreferenceData, StepMaker, TrainingSteps, ValidationSteps
from medvlm_dpo.data.encoding import EncodedExample
from medvlm_dpo.data.sampler import num_steps
from medvlm_dpo.data.segments import Layout
from medvlm_dpo.layout import chosen_layout
from medvlm_dpo.objectives.demand import Demand
from medvlm_dpo.objectives.diagnostics import validation_diagnostics
from medvlm_dpo.settings import IMAGE_TREE, TrainerSettings


def layout_of_run(backbone: AbstractBackbone, settings: TrainerSettings) -> Layout:
    """What the settings choose and the backbone allows."""
    # One long row where a kernel skips what no token sees; on a CPU attention costs the square of a row.
    row_tokens = (settings.micro_batch_tokens or sys.maxsize) if torch.cuda.is_available() else 0
    return chosen_layout(settings.layout, backbone, row_tokens=row_tokens)


def step_maker(backbone: AbstractBackbone, layout: Layout, settings: TrainerSettings, views: frozenset[str], *, seed: int) -> StepMaker:
    """Makes steps of some views."""
    return StepMaker(
        views=views,
        layout=layout,
        pictures=backbone.pictures,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        micro_batch_tokens=settings.micro_batch_tokens,
        seed=seed,
        rank=ranks.rank(),
        num_ranks=ranks.num_ranks(),
    )


def steps_of_run(num_examples: int, settings: TrainerSettings) -> int:
    """Optimiser steps of a whole run."""
    return num_steps(
        num_examples=num_examples, batch_size=settings.batch_size, max_epochs=settings.max_epochs, max_steps=settings.max_steps
    )


def training_steps(
    examples: Sequence[EncodedExample], maker: StepMaker, settings: TrainerSettings, *, first_step: int = 0
) -> TrainingSteps:
    """The steps that are left of a run."""
    by_image = settings.order == IMAGE_TREE
    return TrainingSteps(examples, maker, num_steps=steps_of_run(len(examples), settings), first_step=first_step, by_image=by_image)


def preference_data(
    splits: Mapping[str, Sequence[EncodedExample]], maker: StepMaker, demand: Demand, settings: TrainerSettings, *, first_step: int
) -> PreferenceData:
    """Loaders of a run: validation scores what its diagnostics ask for besides."""
    every_view = maker.views | validation_diagnostics(demand).demand.views
    return PreferenceData(
        training_steps(splits["train"], maker, settings, first_step=first_step),
        ValidationSteps(splits["validation"], replace(maker, views=every_view)),
    )
