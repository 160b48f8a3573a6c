"""Packed rows through a decoder: what the stock decoder gives, with and without recomputed activations."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from decoder_world import FAMILIES, Adapted, adapted_decoder, embeddings, packed_rows, trees_of, worst
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from transformers import MistralModel
from transformers.integrations import flex_attention as transformers_flex
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from medvlm_dpo.backbones import decoder as decoder_module
from medvlm_dpo.backbones.decoder import checkpoint_layers, packed_states, prepare_decoder
from medvlm_dpo.backbones.tree_attention import QUERY_BLOCK, TREE_ATTENTION, additive_mask, block_mask, tree_attention
from medvlm_dpo.vocab import Rows

TREES = ((230, (5, 9)), (40, (12,)), (60, (3, 4, 8)), (180, (7, 7)))


def stock_states(adapted: Adapted, rows: Rows) -> Tensor:
    """Every layer over every token, by the decoder's own forward and attention."""
    adapted.decoder.config._attn_implementation = "sdpa"
    output = adapted.decoder(
        inputs_embeds=embeddings(adapted, rows),
        attention_mask=additive_mask(trees_of(rows).visible_until, torch.float64),
        position_ids=trees_of(rows).position_ids,
        use_cache=False,
    )
    states: Tensor = output.last_hidden_state[rows.predictor_rows, rows.predictor_columns]
    return states


def own_states(adapted: Adapted, rows: Rows) -> Tensor:
    prepare_decoder(adapted.decoder)
    return packed_states(adapted.decoder, embeddings(adapted, rows), trees_of(rows), rows.predictor_rows, rows.predictor_columns)


def gradients(states: Tensor, weights: list[torch.nn.Parameter]) -> tuple[Tensor, ...]:
    """Of a sum in which every state counts differently. The last layer's projections of queries are among the weights."""
    factors = torch.randn(states.shape, generator=torch.Generator().manual_seed(1), dtype=states.dtype)
    return torch.autograd.grad((states * factors).sum(), weights)


@pytest.mark.parametrize("row_tokens", [0, 1000])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_gradients_are_those_of_the_stock_decoder(family: str, row_tokens: int) -> None:
    adapted, rows = adapted_decoder(family), packed_rows(*TREES, row_tokens=row_tokens)
    assert rows.input_ids.shape[1] > 200, "rows of several query blocks"
    assert rows.input_ids.shape[0] == (1 if row_tokens else 3)
    expected = stock_states(adapted, rows)
    expected_gradients = gradients(expected, adapted.weights)

    found = own_states(adapted, rows)

    assert adapted.decoder.config._attn_implementation == TREE_ATTENTION
    assert worst([found], [expected]) < 1e-12
    assert worst(gradients(found, adapted.weights), expected_gradients) < 1e-12


def calls_of(adapted: Adapted) -> Counter[int]:
    """Tokens that go through the MLP of each layer, counted from now on."""
    seen: Counter[int] = Counter()
    for place, layer in enumerate(adapted.decoder.layers):
        layer.mlp.register_forward_pre_hook(lambda _, inputs, place=place: seen.update({place: inputs[0].shape[:2].numel()}))
    return seen


def test_the_last_layer_runs_the_wanted_tokens_only() -> None:
    adapted, rows = adapted_decoder("phantom_llava"), packed_rows((230, (5, 9)), (225, (6, 10)))
    seen = calls_of(adapted)

    own_states(adapted, rows)

    predictors = [len(set(rows.predictor_columns[rows.predictor_rows == row].tolist())) for row in (0, 1)]
    assert seen == {0: rows.input_ids.numel(), 1: rows.input_ids.numel(), 2: 2 * max(predictors)}
    assert max(predictors) < 20


class Subclass(MistralModel):
    """A decoder that may compute anything."""


def test_a_decoder_of_another_class_runs_by_its_own_forward() -> None:
    adapted, rows = adapted_decoder("phantom_llava"), packed_rows(*TREES)
    expected = own_states(adapted, rows)
    adapted.decoder.__class__ = Subclass
    adapted.decoder.config._attn_implementation = "sdpa"
    seen = calls_of(adapted)

    found = own_states(adapted, rows)

    assert adapted.decoder.config._attn_implementation == "sdpa"
    assert set(seen.values()) == {rows.input_ids.numel()}
    assert worst([found], [expected]) < 1e-12


# --- recomputed activations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("states_of", [own_states, stock_states])
def test_recomputed_layers_give_the_same_gradients(family: str, states_of: Any) -> None:
    adapted, rows = adapted_decoder(family), packed_rows(*TREES)
    kept = states_of(adapted, rows)
    expected = gradients(kept, adapted.weights)

    checkpoint_layers(adapted.decoder)
    checkpoint_layers(adapted.decoder)  # once more changes nothing
    seen = calls_of(adapted)
    recomputed = states_of(adapted, rows)
    forward = dict(seen)
    found = gradients(recomputed, adapted.weights)

    assert torch.equal(recomputed, kept)
    assert worst(found, expected) < 1e-12
    trimmed = states_of is own_states
    assert seen == {place: count * (1 if trimmed and place == len(forward) - 1 else 2) for place, count in forward.items()}


def test_recomputed_layers_keep_less() -> None:
    adapted, rows = adapted_decoder("phantom_llava"), packed_rows(*TREES)

    def saved() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor):
            own_states(adapted, rows)
        return sum(sizes)

    before = saved()
    checkpoint_layers(adapted.decoder)
    assert saved() < before / 2


def test_without_gradient_nothing_is_recomputed() -> None:
    adapted, rows = adapted_decoder("phantom_llava"), packed_rows(*TREES)
    with torch.no_grad():
        expected = own_states(adapted, rows)
    checkpoint_layers(adapted.decoder)
    seen = calls_of(adapted)

    with torch.no_grad():
        found = own_states(adapted, rows)

    assert torch.equal(found, expected)
    assert seen[0] == rows.input_ids.numel()
    assert not found.requires_grad


# --- attention -------------------------------------------------------------------------------------------------------


class Layer(torch.nn.Module):
    """What attention functions read of a layer."""

    num_key_value_groups = 2
    is_causal = True


MODULE = Layer()


def attention_inputs(rows: int, length: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of four heads, keys and values of two."""
    random = torch.Generator().manual_seed(2)
    shapes = ((rows, 4, length, 8), (rows, 2, keys, 8), (rows, 2, keys, 8))
    query, key, value = (torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes)
    return query, key, value


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Queries and keys of every call of the kernel, from now on."""
    calls: list[tuple[int, int]] = []
    kernel: Callable[..., Tensor] = torch.nn.functional.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, *rest: Any, **options: Any) -> Tensor:
        calls.append((query.shape[2], key.shape[2]))
        return kernel(query, key, *rest, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    return calls


def test_a_block_reads_no_key_behind_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, length = counted(monkeypatch), 2 * QUERY_BLOCK + 90
    tree_attention(MODULE, *attention_inputs(1, length, length), torch.zeros(1, 1, length, length, dtype=torch.float64), scaling=0.3)

    assert len(calls) == 3
    assert sum(queries for queries, _ in calls) == length
    assert [keys for _, keys in calls] == [sum(queries for queries, _ in calls[: place + 1]) for place in range(3)]


@pytest.mark.parametrize("kind", ["none", "boolean", "more keys than queries"])
def test_other_masks_are_sdpas(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No mask and boolean ones come from rows without trees, more keys than queries from a cache."""
    calls, length = counted(monkeypatch), QUERY_BLOCK + 50
    keys = length + 7 if kind == "more keys than queries" else length
    mask = {
        "none": None,
        "boolean": torch.ones(1, 1, length, keys, dtype=torch.bool).tril(),
        "more keys than queries": torch.zeros(1, 1, length, keys, dtype=torch.float64),
    }[kind]
    inputs = attention_inputs(1, length, keys)
    found, _ = tree_attention(MODULE, *inputs, mask, scaling=0.3)
    assert calls == [(length, keys)]
    expected, _ = sdpa_attention_forward(MODULE, *inputs, mask, scaling=0.3)
    assert torch.equal(found, expected)


# --- block masks, without compilation: this says nothing about the kernel of a GPU ---------------------------------------


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile.*")
@pytest.mark.parametrize("row_tokens", [0, 1000])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_with_block_masks_gives_what_it_gives_with_float_ones(
    family: str, row_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted, rows = adapted_decoder(family, torch.float32), packed_rows((150, (5, 9)), (40, (12,)), (60, (3, 4)), row_tokens=row_tokens)
    masks: list[Any] = []

    def made(trees: Any, _: torch.dtype) -> Any:
        masks.append(block_mask(trees.visible_until))
        return masks[-1]

    def uncompiled(query: Tensor, key: Tensor, value: Tensor, training: bool = False, **options: Any) -> Any:
        return flex_attention(query, key, value, **options)

    def states() -> Tensor:
        with torch.no_grad():
            return own_states(adapted, rows)

    expected = states()
    monkeypatch.setattr(decoder_module, "tree_mask", made)
    monkeypatch.setattr(transformers_flex, "compile_friendly_flex_attention", uncompiled)
    found = states()

    assert len(masks) == 1, "one mask for all layers"
    assert worst([found], [expected]) < 1e-5
