"""LoRA on the language model only: the one trainable part of a cell by default."""

import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from medvlm_dpo.errors import InputError


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (https://arxiv.org/abs/2106.09685); dropout is always off, so that step-0 margins are 0.

    Args:
        rank: rank of every update, >= 1.
        alpha: scale; an update is multiplied by alpha / rank.
        target_modules: names of linear layers inside the language model, e.g. `q_proj`.
    """

    rank: int
    alpha: float
    target_modules: list[str]

    def __post_init__(self) -> None:
        """Raises InputError on values that cannot train."""
        problems = [f"adapter.rank must be >= 1, got {self.rank}"] if self.rank < 1 else []
        problems += [f"adapter.alpha must be > 0, got {self.alpha}"] if not 0 < self.alpha < math.inf else []
        problems += ["adapter.target_modules must name at least one layer, e.g. [q_proj, v_proj]"] if not self.target_modules else []
        if problems:
            raise InputError(problems)


def add_lora(model: PreTrainedModel, settings: LoraSettings, *, seed: int) -> PeftModel:
    """Freezes a model and puts fresh adapters on the language model's layers; their first output is exactly 0.

    Args:
        model: a vision-language model whose language model is reached as `...language_model...`.
        settings: rank, scale and layers.
        seed: seed of the adapters' random half.

    Raises:
        InputError: if no layer of the language model has one of the names.
    """
    names = "|".join(re.escape(name) for name in settings.target_modules)
    pattern = rf".*language_model\..*\.({names})"  # "all-linear" would also train the vision tower and the projector
    if not any(re.fullmatch(pattern, name) for name, _ in model.named_modules()):
        linears = {
            name.rsplit(".", 1)[-1]
            for name, part in model.named_modules()
            if isinstance(part, torch.nn.Linear) and "language_model" in name
        }
        raise InputError(
            f"adapter.target_modules={settings.target_modules}: the language model has none; its linear layers are {sorted(linears)}"
        )
    torch.manual_seed(seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=cast("int", settings.alpha),
        target_modules=pattern,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning
        )  # peft 0.21 asks transformers 5 so
        adapted = get_peft_model(model, config)
    outside = [name for name, weight in adapted.named_parameters() if weight.requires_grad and "language_model" not in name]
    if outside:
        raise RuntimeError(f"trainable tensors outside the language model: {outside[:5]}")
    return adapted


def adapter_tensors(model: PeftModel) -> dict[str, torch.Tensor]:
    """The adapter's tensors under peft's names, on the CPU."""
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def load_adapter_tensors(model: PeftModel, tensors: dict[str, torch.Tensor]) -> None:
    """Puts saved tensors back; every one must find its place and none may be missing.

    Raises:
        InputError: if names or shapes differ.
    """
    expected = {name: tensor.shape for name, tensor in adapter_tensors(model).items()}
    given = {name: tensor.shape for name, tensor in tensors.items()}
    if expected != given:
        differing = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
        raise InputError(f"the saved adapter does not fit this model: {len(differing)} tensors differ, first {differing[0]}")
    set_peft_model_state_dict(model, tensors)


def load_adapter_folder(model: PeftModel, folder: Path) -> None:
    """Loads `adapter_model.safetensors` of a folder written by `save_pretrained`.

    Raises:
        InputError: it is missing or damaged.
    """
    file = folder / "adapter_model.safetensors"
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{file} is missing or damaged ({error}); put it back, or remove the cell's folder {folder.parent}, "
            "and the command that made it trains it again"
        ) from error
    load_adapter_tensors(model, tensors)
