"""LoRA on the language model only: the one trainable part of a cell by default."""

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from medvlm_dpo.errors import InputError

Factors = Mapping[str, tuple[Tensor, Tensor]]  # by adapted layer: down [rank, in] and up [out, rank]; the update of its weight is up @ down


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


def adapter_factors(model: PeftModel) -> dict[str, tuple[Tensor, Tensor]]:
    """A frozen copy of the adapter: both factors of every adapted layer, the scale alpha / rank folded into the second."""
    return {
        name: (_weight(layer.lora_A).clone(), _weight(layer.lora_B) * layer.scaling["default"])
        for name, layer in _adapted_layers(model).items()
    }


def mixed_factors(snapshots: Sequence[Factors], coefficients: Sequence[float]) -> dict[str, tuple[Tensor, Tensor]]:
    """The weighted sum of several adapters as one of a higher rank: exact, while averaging the two factors separately is not.

    Args:
        snapshots: of the same layers, at least one.
        coefficients: one weight a snapshot.
    """
    return {
        name: (
            torch.cat([snapshot[name][0] for snapshot in snapshots]),
            torch.cat([weight * snapshot[name][1] for weight, snapshot in zip(coefficients, snapshots, strict=True)], dim=1),
        )
        for name in snapshots[0]
    }


@contextmanager
def replaced_adapter(model: PeftModel, factors: Factors) -> Iterator[None]:
    """Inside it the model runs with these factors in place of its adapter; the adapter itself is untouched.

    Args:
        model: with its adapter.
        factors: for every adapted layer.
    """
    layers = _adapted_layers(model)
    hooks = [layers[name].get_base_layer().register_forward_hook(_update(*own)) for name, own in factors.items()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _update(down: Tensor, up: Tensor) -> Any:
    def add(layer: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:  # noqa: ARG001 - the signature of a hook
        return output + (inputs[0].to(down.dtype) @ down.T @ up.T).to(output.dtype)

    return add


def _adapted_layers(model: PeftModel) -> dict[str, LoraLayer]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def _weight(factor: Any) -> Tensor:
    return factor["default"].weight.detach()


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
