"""The frozen policy that objectives compare with."""

import torch

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.logps import TokenValues, label_logps
from medvlm_dpo.vocab import Batch


def policy_values(backbone: AbstractBackbone, batch: Batch) -> TokenValues:
    """Per-token values of the model as it is now; carries gradient where torch records it."""
    return {"logps": label_logps(backbone.hidden_states(batch.rows), backbone.head, batch.rows.labels)}


@torch.no_grad()
def starting_values(backbone: AbstractBackbone, batch: Batch) -> TokenValues:
    """Per-token values of the starting model: the same weights with the adapter switched off."""
    with backbone.adapter_disabled():
        return policy_values(backbone, batch)
