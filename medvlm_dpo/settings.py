"""Settings of training and decoding, checked once, when they are made."""

import math
from dataclasses import dataclass

from medvlm_dpo.errors import InputError


@dataclass(frozen=True)
class TrainerSettings:
    """How a cell is trained. Only the first group changes the trained weights.

    Args:
        max_steps: optimiser steps; None leaves it to `max_epochs`.
        max_epochs: passes over the training examples, may be a fraction.
        batch_size: examples per optimiser step, over all devices and micro-batches.
        learning_rate: peak of the cosine schedule; 0 trains nothing, as a control.
        lr_warmup_fraction: share of the steps in which the rate rises linearly.
        weight_decay: AdamW's, decoupled.
        gradient_clip_norm: global norm gradients are clipped to; 0 switches clipping off.
        micro_batch_size: examples per forward pass; None takes the whole batch.
        validate_every_steps: steps between validations; None validates before and after training only.
        checkpoint_every_steps: steps between checkpoints; None leaves it to the minutes.
        checkpoint_every_min: minutes between checkpoints; None leaves it to the steps.
    """

    max_steps: int | None
    max_epochs: float
    batch_size: int
    learning_rate: float
    lr_warmup_fraction: float
    weight_decay: float
    gradient_clip_norm: float
    micro_batch_size: int | None
    validate_every_steps: int | None
    checkpoint_every_steps: int | None
    checkpoint_every_min: float | None

    def __post_init__(self) -> None:
        """Raises InputError with every value that is out of range."""
        at_least_one = ("max_steps", "batch_size", "micro_batch_size", "validate_every_steps", "checkpoint_every_steps")
        limits: dict[str, tuple[int | float | None, bool]] = {
            name: (value, value is None or value >= 1)
            for name, value in zip(
                at_least_one,
                (self.max_steps, self.batch_size, self.micro_batch_size, self.validate_every_steps, self.checkpoint_every_steps),
                strict=True,
            )
        }
        problems = [f"trainer.{name} must be >= 1, got {value}" for name, (value, fine) in limits.items() if not fine]
        for name, value in (("max_epochs", self.max_epochs), ("checkpoint_every_min", self.checkpoint_every_min)):
            problems += [f"trainer.{name} must be > 0, got {value}"] if value is not None and not 0 < value < math.inf else []
        for name, value in (
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
            ("gradient_clip_norm", self.gradient_clip_norm),
        ):
            problems += [] if 0 <= value < math.inf else [f"trainer.{name} must be >= 0, got {value}"]
        problems += (
            [] if 0 <= self.lr_warmup_fraction <= 1 else [f"trainer.lr_warmup_fraction must lie in [0, 1], got {self.lr_warmup_fraction}"]
        )
        if problems:
            raise InputError(problems)


@dataclass(frozen=True)
class DecodingSettings:
    """How answers are generated: greedily, so that an answer depends on model, image and question only.

    Args:
        max_new_tokens: longest answer in tokens, its end included.
        batch_size: questions per batch; changes speed, not answers.
    """

    max_new_tokens: int
    batch_size: int

    def __post_init__(self) -> None:
        """Raises InputError with every value that is out of range."""
        values = (("max_new_tokens", self.max_new_tokens), ("batch_size", self.batch_size))
        problems = [f"decoding.{name} must be >= 1, got {value}" for name, value in values if value < 1]
        if problems:
            raise InputError(problems)
