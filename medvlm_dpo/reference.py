"""The frozen policy that objectives compare with."""

from collections.abc import Collection

import torch
from torch import Tensor

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.data.collate import only_views, tokens_of_views
from medvlm_dpo.logps import TokenValues, label_logps
from medvlm_dpo.vocab import Batch


def policy_values(backbone: AbstractBackbone, batch: Batch) -> TokenValues:
    """Per-token values of the model as it is now; carries gradient where torch records it."""
    return {"logps": label_logps(backbone.hidden_states(batch.rows), backbone.head, batch.rows.labels)}


def training_values(backbone: AbstractBackbone, batch: Batch, gradient_views: Collection[str]) -> TokenValues:
    """Per-token values of the policy with gradient for some views only; the others (KTO's unmatched answers) need no backward pass.

    Args:
        backbone: the policy.
        batch: one micro-batch.
        gradient_views: views whose values carry gradient, at least one.
    """
    idle = batch.answers.keys() - gradient_views
    idle_tokens = tokens_of_views(batch, idle) if idle else None
    if idle_tokens is None or not bool(idle_tokens.any()):
        return policy_values(backbone, batch)
    live = policy_values(backbone, only_views(batch, batch.answers.keys() - idle))
    with torch.no_grad():
        still = policy_values(backbone, only_views(batch, idle))
    return {base: _merged(idle_tokens, still[base], values) for base, values in live.items()}


def _merged(idle_tokens: Tensor, still: Tensor, live: Tensor) -> Tensor:
    places = torch.arange(len(idle_tokens), device=idle_tokens.device)
    order = torch.cat([places[~idle_tokens], places[idle_tokens]]).argsort()
    return torch.cat([live, still])[order]


@torch.no_grad()
def starting_values(backbone: AbstractBackbone, batch: Batch) -> TokenValues:
    """Per-token values of the starting model: the same weights with the adapter switched off."""
    with backbone.adapter_disabled():
        return policy_values(backbone, batch)
