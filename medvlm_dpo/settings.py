"""Settings of training and decoding, checked once, when they are made."""

import math
from dataclasses import dataclass

from medvlm_dpo.errors import InputError

SHUFFLED, IMAGE_TREE = ORDERS = ("shuffled", "image_tree")
LAYOUTS = ("auto", "plain")


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
        order: `shuffled` shuffles the examples of a pass; `image_tree` shuffles the pictures and keeps the examples of one side by side, so
            that they mostly fall into one batch and share a tree. A batch then shows fewer pictures.
        layout: `auto` lets sequences share what they have in common wherever the backbone allows it; `plain` never does.
        micro_batch_tokens: tokens the policy reads per forward pass; micro-batches are filled up to it. None for no limit.
        micro_batch_size: examples per forward pass; None for no limit.
        activation_checkpointing: recompute every layer in the backward pass in place of keeping its activations: less memory, more work.
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
    order: str
    layout: str
    micro_batch_tokens: int | None
    micro_batch_size: int | None
    activation_checkpointing: bool
    validate_every_steps: int | None
    checkpoint_every_steps: int | None
    checkpoint_every_min: float | None

    def __post_init__(self) -> None:
        """Raises InputError with every value that is out of range."""
        at_least_one = {
            "max_steps": self.max_steps,
            "batch_size": self.batch_size,
            "micro_batch_tokens": self.micro_batch_tokens,
            "micro_batch_size": self.micro_batch_size,
            "validate_every_steps": self.validate_every_steps,
            "checkpoint_every_steps": self.checkpoint_every_steps,
        }
        problems = [f"trainer.{name} must be >= 1, got {value}" for name, value in at_least_one.items() if value is not None and value < 1]
        for name, value, choices in (("order", self.order, ORDERS), ("layout", self.layout, LAYOUTS)):
            problems += [] if value in choices else [f"trainer.{name} must be {' or '.join(choices)}, got {value!r}"]
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


@dataclass(frozen=True)
class CacheSettings:
    """What cells share on disk instead of computing it again. Changes time, and results by rounding only.

    Args:
        folder: where; may be shared with others, and read only.
        reference: keep the starting model's values per token.
        pictures: keep the vision tower's features.
        limit_gb: 10^9 bytes each of the two may take; what would exceed it is computed again each time. None: no limit.
    """

    folder: str
    reference: bool
    pictures: bool
    limit_gb: float | None

    def __post_init__(self) -> None:
        """Raises InputError on values that name no place or no limit."""
        problems = ["cache.folder is empty; name a folder, or use cache=none"] if not self.folder.strip() else []
        if self.limit_gb is not None and not 0 < self.limit_gb < math.inf:
            problems.append(f"cache.limit_gb must be > 0 or null, got {self.limit_gb}")
        if problems:
            raise InputError(problems)
