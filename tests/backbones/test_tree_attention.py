"""The mask of packed rows is a float one that says exactly what the trees say, and every attention function of transformers obeys it."""

from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packing_world import PackingWorld, drawn_examples
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from medvlm_dpo.backbones import decoder, tree_attention
from medvlm_dpo.backbones.tree_attention import additive_mask, block_mask
from medvlm_dpo.data.segments import PackedLayout, PlainLayout

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAW = settings(max_examples=60, deadline=None, derandomize=True)
# A prefix of two tokens, branches of two and of one, a second tree of one token, and padding.
UNTIL = torch.tensor([[5, 5, 4, 4, 5, 6, 7]])
SEES = [
    [1, 0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 0, 0],
    [1, 1, 1, 1, 0, 0, 0],
    [1, 1, 0, 0, 1, 0, 0],
    [0, 0, 0, 0, 0, 1, 0],
    [0, 0, 0, 0, 0, 0, 1],
]


@st.composite
def drawn_until(draw: st.DrawFn) -> Tensor:
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    return torch.tensor([[draw(st.integers(column + 1, columns)) for column in range(columns)] for _ in range(rows)])


# --- the mask ----------------------------------------------------------------------------------------------------------


@LAW
@given(drawn_until(), st.sampled_from(DTYPES))
def test_a_token_sees_what_its_tree_says(until: Tensor, dtype: torch.dtype) -> None:
    places = range(until.shape[1])
    sees = torch.tensor([[[other <= own < row[other] for other in places] for own in places] for row in until.tolist()])

    mask = additive_mask(until, dtype)

    assert mask.dtype == dtype, "a boolean mask would be added to the scores as 0 and 1 by some attention functions"
    assert torch.equal(mask.squeeze(1) == 0, sees)
    assert bool((mask.squeeze(1)[~sees] == torch.finfo(dtype).min).all())


@LAW
@given(drawn_until(), st.data())
def test_some_tokens_see_what_they_see_among_all(until: Tensor, data: st.DataObject) -> None:
    rows, columns = until.shape
    number = data.draw(st.integers(1, 4))
    queries = torch.tensor([[data.draw(st.integers(0, columns - 1)) for _ in range(number)] for _ in range(rows)])

    mask, whole = additive_mask(until, torch.float32, queries), additive_mask(until, torch.float32)

    assert mask.shape == (rows, 1, number, columns)
    assert all(torch.equal(mask[row, 0], whole[row, 0, queries[row]]) for row in range(rows))


def test_a_tree_written_out() -> None:
    assert (additive_mask(UNTIL, torch.float32)[0, 0] == 0).int().tolist() == SEES


def test_the_block_mask_says_the_same() -> None:
    made = block_mask(UNTIL)
    places = torch.arange(7)

    assert made.shape == (1, 1, 7, 7)
    zero = torch.tensor(0)
    assert [[int(made.mask_mod(zero, zero, own, other)) for other in places] for own in places] == SEES


# --- attention ---------------------------------------------------------------------------------------------------------


class Groups(torch.nn.Module):
    """What an attention function asks of its layer: four heads of queries share two of keys."""

    num_key_value_groups = 2
    is_causal = True


@LAW
@given(drawn_until(), st.integers(1, 5))
def test_queries_in_blocks_give_what_all_at_once_give(until: Tensor, block: int) -> None:
    """Values and gradients in float64."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = until.shape
    shapes = [(rows, heads, columns, 4) for heads in (4, 2, 2)]
    states = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(True) for shape in shapes]
    factors = torch.randn((rows, columns, 4, 4), generator=generator, dtype=torch.float64)
    mask = additive_mask(until, torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_attention, "QUERY_BLOCK", block)
        found, _ = tree_attention.tree_attention(Groups(), states[0], states[1], states[2], mask)

    expected = scaled_dot_product_attention(states[0], states[1], states[2], attn_mask=mask, enable_gqa=True).transpose(1, 2)

    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad((value * factors).sum(), states) for value in (found, expected))
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("length", "block"), [(1, 192), (192, 192), (193, 192), (713, 192), (7, 3), (7, 1)])
def test_blocks_follow_each_other_and_are_nearly_equal(length: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_attention, "QUERY_BLOCK", block)

    blocks = tree_attention._blocks(length)

    assert [place for start, end in blocks for place in range(start, end)] == list(range(length))
    sizes = [end - start for start, end in blocks]
    assert max(sizes) <= block
    assert max(sizes) - min(sizes) <= 1


# --- in a model whose class has no attention of ours -------------------------------------------------------------------


@cache
def world_of(model: str, attention: str) -> PackingWorld:
    world = PackingWorld(model, torch.float32)
    module: Any = world.backbone.module
    module.set_attn_implementation(attention)
    return world


def largest_difference(world: PackingWorld, monkeypatch: pytest.MonkeyPatch) -> float:
    """Of the log-probabilities of the labels between packed rows through the decoder's own forward and plain rows, nats."""
    monkeypatch.setattr(decoder, "KNOWN_DECODERS", ())
    examples = drawn_examples(Random(2), 4, world.backbone)

    def logps(layout: PackedLayout | PlainLayout) -> Tensor:
        rows = world.batch(examples, ("chosen", "rejected"), layout).rows
        with torch.no_grad():
            return world.backbone.head(world.backbone.hidden_states(rows)).log_softmax(-1).gather(1, rows.labels.unsqueeze(1))

    packed = PackedLayout(world.backbone.encoder.image_token_id, row_tokens=10_000)
    return float((logps(packed) - logps(PlainLayout())).abs().max())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model", ["phantom_llava", "phantom_huatuo"])
def test_every_attention_function_obeys(model: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert largest_difference(world_of(model, attention), monkeypatch) < 2e-5


@pytest.mark.parametrize("model", ["phantom_llava", "phantom_huatuo"])
def test_a_boolean_mask_would_not_be_obeyed_by_all(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager attention adds it to the scores, as 0 and 1."""
    own = decoder.additive_mask
    monkeypatch.setattr(decoder, "additive_mask", lambda *arguments: own(*arguments) == 0)

    assert largest_difference(world_of(model, "eager"), monkeypatch) > 1e-2
