"""Running a transformers decoder over packed rows: only what the answers' values need of the last layer, activations kept or recomputed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import LlamaModel, MistralModel, Qwen2Model
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from medvlm_dpo.backbones.tree_attention import additive_mask, tree_mask, use_tree_attention
from medvlm_dpo.vocab import Trees

# Their layers have the same parts, so that `_last_layer` is right for all of them. Exact classes: a subclass may compute something else.
KNOWN_DECODERS = (LlamaModel, MistralModel, Qwen2Model)
KNOWN_TYPES = ("llama", "mistral", "qwen2")  # their `model_type`


def prepare_decoder(decoder: Any) -> None:
    """Lets a decoder of a known class use the attention of packed rows; any other stays as it is."""
    if type(decoder) in KNOWN_DECODERS:
        use_tree_attention(decoder.config)


def packed_states(
    decoder: Any,
    embedded: Float[Tensor, "row column hidden"],
    trees: Trees,
    rows: Int[Tensor, " wanted"],
    columns: Int[Tensor, " wanted"],
) -> Float[Tensor, "wanted hidden"]:
    """Last hidden states of some tokens of packed rows.

    In the last layer of a known decoder all tokens give keys and values, but only the wanted ones look, and only they go through the output
    projection and the MLP: nobody reads the others' last state.

    Args:
        decoder: a transformers decoder without its head, prepared by `prepare_decoder`.
        embedded: the tokens' embeddings.
        trees: how they see each other.
        rows: of the wanted tokens; a place may come more than once.
        columns: of the wanted tokens.
    """
    if type(decoder) not in KNOWN_DECODERS:
        mask = additive_mask(trees.visible_until, embedded.dtype)
        output = decoder(inputs_embeds=embedded, attention_mask=mask, position_ids=trees.position_ids, use_cache=False)
        return output.last_hidden_state[rows, columns]
    *layers, last = decoder.layers[: decoder.config.num_hidden_layers]
    rotation = decoder.rotary_emb(embedded, position_ids=trees.position_ids)
    mask = tree_mask(trees, embedded.dtype) if layers else None
    hidden = embedded
    for layer in layers:
        hidden = layer(hidden, attention_mask=mask, position_ids=trees.position_ids, position_embeddings=rotation)
    queries, places = _queries(rows, columns, trees.visible_until.shape)
    return decoder.norm(_last_layer(last, hidden, rotation, trees.visible_until, queries)[rows, places])


def _queries(rows: Tensor, columns: Tensor, shape: torch.Size) -> tuple[Int[Tensor, "row query"], Int[Tensor, " wanted"]]:
    """By row the columns of the wanted tokens, each once and filled up with column 0, and where every wanted token stands in its row."""
    wanted, inverse = torch.unique(rows * shape[1] + columns, return_inverse=True)  # sorted, so row by row
    owners = wanted // shape[1]
    counts = torch.bincount(owners, minlength=shape[0])
    places = torch.arange(len(wanted), device=wanted.device) - (counts.cumsum(0) - counts)[owners]
    queries = torch.zeros((shape[0], int(counts.max())), dtype=torch.long, device=wanted.device)
    queries[owners, places] = wanted % shape[1]
    return queries, places[inverse]


def _last_layer(
    layer: Any,
    hidden: Float[Tensor, "row column hidden"],
    rotation: tuple[Tensor, Tensor],
    visible_until: Int[Tensor, "row column"],
    queries: Int[Tensor, "row query"],
) -> Float[Tensor, "row query hidden"]:
    """What the layer gives for the tokens of `queries`, through its own parts, so that adapters and hooks on them act as ever."""
    attention: Any = layer.self_attn
    normed = layer.input_layernorm(hidden)
    key, value = (_heads(part(normed), attention) for part in (attention.k_proj, attention.v_proj))
    query = _heads(attention.q_proj(_picked(normed, queries)), attention)
    key, _ = apply_rotary_pos_emb(key, key, *rotation)
    cosines, sines = (_picked(part.expand(*hidden.shape[:2], -1), queries) for part in rotation)
    query, _ = apply_rotary_pos_emb(query, query, cosines, sines)
    mask = additive_mask(visible_until, hidden.dtype, queries)
    seen, _ = sdpa_attention_forward(attention, query, key, value, mask, scaling=attention.scaling)
    states = _picked(hidden, queries) + attention.o_proj(seen.reshape(*queries.shape, -1))
    return states + layer.mlp(layer.post_attention_layernorm(states))


def _picked(states: Float[Tensor, "row column width"], queries: Int[Tensor, "row query"]) -> Float[Tensor, "row query width"]:
    return states.gather(1, queries.unsqueeze(-1).expand(-1, -1, states.shape[-1]))


def _heads(states: Tensor, attention: Any) -> Float[Tensor, "row head token width"]:
    return states.view(*states.shape[:2], -1, attention.head_dim).transpose(1, 2)


def checkpoint_layers(decoder: Any) -> None:
    """Recomputes every layer of a decoder in the backward pass in place of keeping its activations.

    transformers' own switch acts in train mode only; our models stay in eval mode, so that dropout is off. The trimmed last layer of packed
    rows is not recomputed: it keeps little.
    """
    for layer in decoder.layers:
        if not isinstance(layer.forward, partial):  # once is enough
            layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Tensor], *inputs: Any, **options: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    # No random numbers are drawn in eval mode, so their state need not be kept.
    made: Tensor = checkpoint(partial(forward, **options), *inputs, use_reentrant=False, preserve_rng_state=False)
    return made
