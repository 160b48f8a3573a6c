"""Greedy decoding of a padded batch with a key-value cache."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def greedy(
    language_model: Any,
    head: torch.nn.Module,
    embedded: Float[Tensor, "row column hidden"],
    padding_mask: Int[Tensor, "row column"],
    *,
    max_new_tokens: int,
    end_id: int,
) -> list[list[int]]:
    """The likeliest token again and again, until every row has ended.

    Args:
        language_model: a transformers decoder without its head.
        head: hidden states to logits.
        embedded: left-padded prompt embeddings; the last column is real in every row.
        padding_mask: 1 on real positions.
        max_new_tokens: most tokens per answer, the end token included.
        end_id: id that ends an answer.

    Returns:
        Ids per row, without the end token.
    """
    answers: list[list[int]] = [[] for _ in range(len(embedded))]
    running = torch.ones(len(embedded), dtype=torch.bool, device=embedded.device)
    positions = (padding_mask.cumsum(-1) - 1).clamp(min=0)  # positions count real tokens, so padding changes nothing
    cache: Any = None
    for _ in range(max_new_tokens):
        output = language_model(
            inputs_embeds=embedded, attention_mask=padding_mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        cache = output.past_key_values
        tokens = head(output.last_hidden_state[:, -1]).argmax(-1)
        running &= tokens != end_id
        for row in running.nonzero().flatten().tolist():
            answers[row].append(int(tokens[row]))
        if not running.any():
            break
        embedded = language_model.get_input_embeddings()(tokens).unsqueeze(1)
        padding_mask = torch.cat([padding_mask, torch.ones_like(padding_mask[:, :1])], dim=-1)
        positions = positions[:, -1:] + 1
    return answers
