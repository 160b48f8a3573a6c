"""The sizes of one benchmark. No torch here: the parent process reads this file and stays small."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """What is trained, for how long.

    Args:
        answer_tokens: of every answer, end-of-sequence included.
        vocabulary: rows of the embedding and of the head.
        text_tokens: mean number of prompt tokens beside the picture's.
        batch_size: pairs per optimiser step.
        questions_per_image: pairs that show the same picture.
        steps: optimiser steps of the whole run, for the schedule.
        hidden, intermediate, layers, heads, key_value_heads: of the language model; the defaults have Mistral-7B's proportions.
        vision_hidden, vision_layers: of the tower; the defaults give it LLaVA's share of the work, about 4 %.
        image_side, patch_side: in pixels.
        lora_rank: of every update; alpha is twice it.
        family: of the language model, `mistral` or `qwen2`.
    """

    answer_tokens: int
    vocabulary: int
    text_tokens: int = 71
    batch_size: int = 4
    questions_per_image: int = 1
    steps: int = 8
    hidden: int = 512
    intermediate: int = 1792
    layers: int = 8
    heads: int = 8
    key_value_heads: int = 2
    vision_hidden: int = 128
    vision_layers: int = 6
    image_side: int = 336
    patch_side: int = 14
    lora_rank: int = 8
    family: str = "mistral"

    @property
    def image_tokens(self) -> int:
        """Positions one picture takes."""
        return (self.image_side // self.patch_side) ** 2

    @property
    def num_pairs(self) -> int:
        """Two batches: from the third step on pairs come back, so that the losses move and their equality says something."""
        return 2 * self.batch_size


TINY: dict[str, Any] = {
    "hidden": 32,
    "intermediate": 64,
    "layers": 2,
    "heads": 4,
    "vision_hidden": 16,
    "vision_layers": 2,
    "image_side": 28,
    "patch_side": 7,
    "lora_rank": 2,
}  # for tests of the benchmark itself
