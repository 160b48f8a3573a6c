"""Decoders of the built-in families with disturbed adapters, and packed rows for them."""

from collections.abc import Iterable, Sequence
from functools import partial
from random import Random
from typing import Any, NamedTuple

import torch
from pictures import Picture
from torch import Tensor
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from medvlm_dpo.backbones.adapter import LoraSettings, add_lora
from medvlm_dpo.data.phantom.tiny_models import build_model
from medvlm_dpo.data.segments import PackedLayout, Scored
from medvlm_dpo.vocab import ImageSource, Rows, Trees

FAMILIES = ("phantom_llava", "phantom_huatuo")  # Mistral and Qwen2
EVERY_LINEAR = LoraSettings(rank=3, alpha=6, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
IMAGE = 3


class Adapted(NamedTuple):
    """A decoder and the weights of its adapter."""

    decoder: Any
    weights: list[torch.nn.Parameter]


def adapted_decoder(family: str, dtype: torch.dtype = torch.float64) -> Adapted:
    """Random weights and an adapter on every linear layer that is no longer 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = build_model(family)
        model = model.eval().to(dtype)
        model.requires_grad_(requires_grad=False)
        add_lora(model, EVERY_LINEAR, seed=0)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        with torch.no_grad():
            for weight in weights:
                weight.add_(0.1 * torch.randn(weight.shape, dtype=weight.dtype))
    parts: Iterable[Any] = model.modules()
    for part in parts:
        if type(part) in (MistralRMSNorm, Qwen2RMSNorm):
            part.forward = partial(_normed, part)
    return Adapted(model.model.language_model, weights)


def _normed(norm: Any, hidden: Tensor) -> Tensor:
    """The stock norm computes in float32, whatever it is given: its rounding would hide errors."""
    return norm.weight * hidden * (hidden.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()


def pictures(images: Sequence[ImageSource]) -> Tensor:
    """Something to stand for pictures: decoders never see them."""
    return torch.zeros(len(images), 3, 2, 2)


def packed_rows(*lengths: tuple[int, tuple[int, ...]], row_tokens: int = 0) -> Rows:
    """A tree for every (tokens of the prompt, tokens of each answer); two answers of one prompt begin with the same two tokens."""
    random = Random(0)
    scored: list[Scored] = []
    for place, (prompt, answers) in enumerate(lengths):
        ids = (1, IMAGE, *(random.randrange(4, 500) for _ in range(prompt - 2)))
        beginning = [random.randrange(4, 500) for _ in range(2)]
        scored += [
            Scored(ids, (*beginning, *(random.randrange(4, 500) for _ in range(length - 2))), Picture(str(place))) for length in answers
        ]
    return PackedLayout(IMAGE, row_tokens)(scored, pictures)


def trees_of(rows: Rows) -> Trees:
    """The trees, which packed rows have."""
    assert rows.trees is not None
    return rows.trees


def embeddings(adapted: Adapted, rows: Rows) -> Tensor:
    """Of the rows' tokens."""
    embedded: Tensor = adapted.decoder.get_input_embeddings()(rows.input_ids)
    return embedded


def worst(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest number expected."""
    scale = max(float(one.detach().abs().max()) for one in expected)
    assert scale > 1e-3, "numbers that are all 0 would prove nothing"
    return max(float((own - other).detach().abs().max()) for own, other in zip(found, expected, strict=True)) / scale
