"""What tokens of packed rows see, as transformers' decoders take it."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medvlm_dpo.vocab import Trees


def tree_attention(trees: Trees, embedded: Float[Tensor, "row column hidden"]) -> dict[str, Any]:
    """Keyword arguments of a decoder: positions that begin anew in every branch, and a mask in place of the causal one.

    A boolean mask would be added to the scores as 0 and 1 by some attention functions, so the mask is a float one: 0 or the lowest number.
    """
    return {"position_ids": trees.position_ids, "attention_mask": additive_mask(trees, embedded.dtype)}


def additive_mask(trees: Trees, dtype: torch.dtype) -> Float[Tensor, "row 1 column column"]:
    """0 where the token of a line sees that of a column, the lowest number of the dtype elsewhere."""
    columns = torch.arange(trees.visible_until.shape[1], device=trees.visible_until.device)
    sees = (columns <= columns.unsqueeze(1)) & (columns.unsqueeze(1) < trees.visible_until.unsqueeze(1))
    mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, torch.finfo(dtype).min)
    return mask.unsqueeze(1)
