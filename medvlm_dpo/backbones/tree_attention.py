"""What tokens of packed rows see, as transformers' decoders take it, and an attention function that makes use of it.

On the CPU the mask is a float one that is added to the scores, and queries are taken in blocks, each of which reads the keys up to its own
end only, because no token sees what comes after it. On CUDA it is a block mask for FlexAttention, whose kernel passes over blocks that no
token sees: its values were compared without compilation on the CPU, it was not run on a GPU.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from medvlm_dpo.vocab import Trees

TREE_ATTENTION = "medvlm_dpo_trees"
QUERY_BLOCK = 192  # tokens; measured with 713 columns, where 4 to 6 blocks are equally fast


def tree_mask(trees: Trees, dtype: torch.dtype) -> Tensor | BlockMask:
    """The mask of packed rows: a block mask on CUDA, a float one elsewhere. For a decoder that uses `tree_attention`."""
    return block_mask(trees.visible_until) if trees.visible_until.is_cuda else additive_mask(trees.visible_until, dtype)


def additive_mask(
    visible_until: Int[Tensor, "row column"], dtype: torch.dtype, queries: Int[Tensor, "row query"] | None = None
) -> Float[Tensor, "row 1 query column"]:
    """0 where a token sees that of a column, the lowest number of the dtype elsewhere.

    A boolean mask would be added to the scores as 0 and 1 by some attention functions.

    Args:
        visible_until: of `Trees`.
        dtype: of the attention scores.
        queries: columns of the tokens that look; None: all, in order.
    """
    columns = torch.arange(visible_until.shape[1], device=visible_until.device)
    looking = (columns.expand_as(visible_until) if queries is None else queries).unsqueeze(2)
    sees = (columns <= looking) & (looking < visible_until.unsqueeze(1))
    mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, torch.finfo(dtype).min)
    return mask.unsqueeze(1)


def block_mask(visible_until: Int[Tensor, "row column"]) -> BlockMask:
    """The same as a block mask of FlexAttention. Not run on a GPU."""
    rows, columns = visible_until.shape
    return create_block_mask(
        lambda row, _, query, key: (key <= query) & (query < visible_until[row, key]), rows, None, columns, columns, visible_until.device
    )


def use_tree_attention(config: Any) -> None:
    """Makes the decoder with this configuration call `tree_attention`; rows without trees are treated as `sdpa` treats them."""
    AttentionInterface.register(TREE_ATTENTION, tree_attention)
    AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)
    config._attn_implementation = TREE_ATTENTION


def tree_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "row head query width"],
    key: Float[Tensor, "row key_head key width"],
    value: Float[Tensor, "row key_head key width"],
    attention_mask: Tensor | BlockMask | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers' decoders call it; the kind of the mask decides how.

    The kind of the mask and not a switch around the call: a recomputed layer runs in the backward pass, when any switch is back.
    """
    if isinstance(attention_mask, BlockMask):
        return flex_attention_forward(module, query, key, value, attention_mask, **options)
    length = query.shape[2]
    if attention_mask is None or not attention_mask.is_floating_point() or query.is_cuda or length != key.shape[2] or length <= QUERY_BLOCK:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    parts = [
        sdpa_attention_forward(
            module,
            query[:, :, start:end],
            key[:, :, :end],
            value[:, :, :end],
            attention_mask[:, :, start:end, :end],
            **options,
        )[0]
        for start, end in _blocks(length)
    ]
    return torch.cat(parts, dim=1), None


def _blocks(length: int) -> list[tuple[int, int]]:
    """Blocks of nearly equal size, none above `QUERY_BLOCK`."""
    number = -(-length // QUERY_BLOCK)
    ends = [length * (place + 1) // number for place in range(number)]
    return list(zip([0, *ends], ends, strict=False))
