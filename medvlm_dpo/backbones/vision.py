"""The vision side of a LLaVA model in two steps, so that what the tower gives can be kept: pixels -> tower's features -> embeddings."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medvlm_dpo.files import sha256_of_json

SCHEMA_VERSION = 1  # of the features: raise it when `tower_features` gives other numbers for the same weights and pixels


@torch.no_grad()
def tower_features(model: Any, pixel_values: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image patch feature"]:
    """What the projector takes: states of the layers that the configuration selects, one behind the other."""
    states = model.model.vision_tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
    first = 1 if model.config.vision_feature_select_strategy == "default" else 0  # "default" leaves the class token out
    return torch.cat([states[layer][:, first:] for layer in _selected(model.config)], dim=-1)


@torch.no_grad()
def projected(model: Any, features: Float[Tensor, "image patch feature"]) -> Float[Tensor, "image patch hidden"]:
    """Embeddings that stand at the image positions."""
    embeddings: Tensor = model.model.multi_modal_projector(features.to(model.dtype))
    return embeddings


def tower_identity(model: Any, processor: Any) -> dict[str, Any]:
    """JSON values that the tower's features of a picture depend on: weights, selected layers, preprocessing and dtype."""
    tower = model.model.vision_tower
    return {
        "schema_version": SCHEMA_VERSION,
        "weights": _hash_of_weights(tower),
        "config": sha256_of_json(_settings(tower.config.to_dict())),
        "layers": _selected(model.config),
        "select_strategy": model.config.vision_feature_select_strategy,
        "preprocessing": sha256_of_json(_settings(processor.to_dict())),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def trained_vision(model: Any) -> str | None:
    """Why features must not be kept: the first weight of tower or projector that is trained; None when all are frozen."""
    for name, weight in model.named_parameters():
        if weight.requires_grad and ("vision_tower" in name or "multi_modal_projector" in name):
            return f"the weight {name} is trained, so that pictures have other features after every step"
    return None


def _selected(config: Any) -> Sequence[int]:
    layer = config.vision_feature_layer
    return [layer] if isinstance(layer, int) else list(layer)


def _settings(described: dict[str, Any]) -> dict[str, Any]:
    """Without notes of who wrote the file and with which version, which decide nothing."""
    notes = {"transformers_version", "_name_or_path", "architectures"}
    return {
        str(key): value if isinstance(value, int | float | bool) else str(value) for key, value in described.items() if key not in notes
    }


def _hash_of_weights(tower: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        raw = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {raw.dtype} {tuple(raw.shape)};".encode())
        digest.update(raw.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
