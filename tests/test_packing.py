"""Packed rows give what plain rows give: in float64 the proof, 1e-9 for loss and gradient; in float32 the rounding of a model.

Plain rows, which are computed with no mask but the causal one, are the oracle. A deliberate mistake must make the comparison fail.
"""

from collections import UserDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packing_mutants import SAME_VALUES, WRONG_ROWS, WRONG_VALUES, pack_wrongly
from packing_world import Outcome, PackingWorld, Shown, check_equal, check_gradient, check_rows, drawn_examples
from pictures import Picture
from torch import Tensor

from medvlm_dpo.config.catalogue import catalogue
from medvlm_dpo.data.encoding import EncodedExample
from medvlm_dpo.data.segments import PackedLayout, PlainLayout, Scored
from medvlm_dpo.logps import served_tensors
from medvlm_dpo.objectives.diagnostics import free_diagnostics
from medvlm_dpo.objectives.terms import build_objective, problems_of
from medvlm_dpo.reference import AbstractReference, StartingReference
from medvlm_dpo.reference_cache import CachedReference, columns_of, keys_of
from medvlm_dpo.reference_fill import ReferenceFill, Work
from medvlm_dpo.scoring import policy_values
from medvlm_dpo.vocab import CLEAN_VIEWS, TENSOR_NAMES, VIEWS, Batch, Rows, TensorName

MODELS = ("phantom_llava", "phantom_huatuo")
EXACT, ROUNDED = 1e-9, 1e-5
ROW_TOKENS = (0, 200, 10_000)  # a row for the longest tree, two or three trees, all in one row
LOSSES = sorted(catalogue())

# What serves a fixed reference in packed rows; plain rows always compute it.
MakeReference = Callable[[PackingWorld, Sequence[EncodedExample], Collection[TensorName]], AbstractReference]


def cached_reference(world: PackingWorld, examples: Sequence[EncodedExample], names: Collection[TensorName]) -> AbstractReference:
    """Values that were computed in packed rows of two examples each."""

    def collated(some: Sequence[EncodedExample], views: frozenset[str]) -> list[Batch]:
        return [world.batch(some[start : start + 2], views, packed_layout(world, 0)) for start in range(0, len(some), 2)]

    columns = columns_of(names)
    keys = {key for example in examples for key in keys_of(example, columns).values()}
    filled = ReferenceFill(world.backbone, collated, [Work(tuple(examples), columns)]).compute(sorted(keys))
    assert filled.keys() == keys
    return CachedReference(UserDict(filled), dtype=world.dtype)


REFERENCES: Mapping[str, MakeReference] = {"computed": lambda *_: StartingReference(), "cached": cached_reference}


@cache
def world_of(model: str, dtype: torch.dtype) -> PackingWorld:
    return PackingWorld(model, dtype)


def packed_layout(world: PackingWorld, row_tokens: int) -> PackedLayout:
    return PackedLayout(world.backbone.encoder.image_token_id, row_tokens)


def steps_of(
    world: PackingWorld, loss: str, examples: tuple[EncodedExample, ...], row_tokens: int, make_reference: MakeReference
) -> tuple[Outcome, Outcome]:
    """One step of a loss in packed and in plain rows."""
    node, _, reference = catalogue()[loss]
    objective = build_objective(node, batch_size=len(examples))
    views = objective.demand.views | set(CLEAN_VIEWS)  # as in training, which reports diagnostics of both answers
    packed, plain = (world.batch(examples, views, layout) for layout in (packed_layout(world, row_tokens), PlainLayout()))
    if reference == "moving":  # each has its own, for it moves after the step; it is never kept
        return world.step([packed], objective, world.moved_reference()), world.step([plain], objective, world.moved_reference())
    fixed = make_reference(world, examples, objective.demand.tensors | free_diagnostics(objective.demand).demand.tensors)
    found = world.step([packed], objective, fixed)
    assert not isinstance(fixed, CachedReference) or fixed.num_computed == 0
    return found, world.step([plain], objective, StartingReference())


def allows(loss: str, size: int) -> bool:
    return not problems_of(catalogue()[loss].node, batch_size=size)


def may_lack_answers(loss: str) -> bool:
    return not build_objective(catalogue()[loss].node, batch_size=2).demand.required_answers


# --- every loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_and_its_gradient(loss: str, model: str) -> None:
    """In float64; the losses take turns with batches of 1 to 8, and models with the cache: a loss has it with one of the two."""
    place = LOSSES.index(loss) + 5 * MODELS.index(model)
    reference = sorted(REFERENCES)[place % 2]
    size = next(size for size in (1 + place % 8, 8) if allows(loss, size))
    world = world_of(model, torch.float64)
    examples = drawn_examples(Random(place), size, world.backbone, absent=may_lack_answers(loss))

    found, expected = steps_of(world, loss, examples, ROW_TOKENS[place % 3], REFERENCES[reference])

    assert not expected.is_flat
    check_equal(found, expected, EXACT)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_losses_gradient_in_float32(loss: str) -> None:
    """The gradient; the models take turns.

    On one batch in a hundred a loss with a steep weight (beta_dpo, discopop) differs by up to 2.5e-5: there float32 alone moves the
    gradient of plain rows by half as much, while in float64 both layouts agree to 1e-13.
    """
    place = LOSSES.index(loss)
    world = world_of(MODELS[place % 2], torch.float32)
    examples = drawn_examples(Random(place), 3, world.backbone)

    found, expected = steps_of(world, loss, examples, ROW_TOKENS[place % 3], REFERENCES["computed"])

    assert not expected.is_flat
    check_gradient(found, expected, ROUNDED)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=1, deadline=None, derandomize=True)
@given(random=st.randoms(use_true_random=False), row_tokens=st.sampled_from(ROW_TOKENS))
def test_every_loss_at_every_size(model: str, size: int, reference: str, random: Random, row_tokens: int) -> None:
    world = world_of(model, torch.float64)
    full, lacking = (drawn_examples(random, size, world.backbone, absent=absent) for absent in (False, True))
    for loss in LOSSES:
        if allows(loss, size):
            examples = lacking if may_lack_answers(loss) else full
            check_equal(*steps_of(world, loss, examples, row_tokens, REFERENCES[reference]), EXACT)


@pytest.mark.parametrize("loss", ["aot_unpaired", "beta_dpo", "kto", "mdpo", "tdpo2"])
def test_packed_micro_batches_give_the_plain_batch(loss: str) -> None:
    world = world_of(MODELS[0], torch.float64)
    objective = build_objective(catalogue()[loss].node, batch_size=7)
    examples = drawn_examples(Random(3), 7, world.backbone)
    views = objective.demand.views | set(CLEAN_VIEWS)
    parts = ((6, 0, 3), (1, 2), (5, 4))

    packed = [
        replace(
            world.batch([examples[place] for place in part], views, packed_layout(world, 0)),
            global_positions=torch.tensor(part),
        )
        for part in parts
    ]
    found = world.step(packed, objective, StartingReference())

    check_equal(found, world.step([world.batch(examples, views, PlainLayout())], objective, StartingReference()), EXACT)


# --- every tensor ------------------------------------------------------------------------------------------------------


def served(world: PackingWorld, batch: Batch) -> dict[str, Tensor]:
    """Every tensor of the grammar."""
    names = TENSOR_NAMES.values()
    reference = StartingReference().values(world.backbone, batch, names)
    return served_tensors(names, batch, {"policy": policy_values(world.backbone, batch, names, reference), "reference": reference})


def weighted(tensors: Mapping[str, Tensor], random: torch.Generator) -> Tensor:
    """A sum in which every number has a weight of its own."""
    live = [tensors[name] for name in sorted(tensors) if tensors[name].requires_grad]
    return torch.stack([(tensor * torch.randn(tensor.shape, generator=random, dtype=tensor.dtype)).sum().double() for tensor in live]).sum()


@pytest.mark.parametrize(("dtype", "values", "gradients"), [(torch.float64, 1e-10, EXACT), (torch.float32, 2e-5, ROUNDED)])
@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(random=st.randoms(use_true_random=False), size=st.integers(1, 8), row_tokens=st.sampled_from(ROW_TOKENS))
def test_every_tensor_and_its_gradient(
    model: str, dtype: torch.dtype, values: float, gradients: float, random: Random, size: int, row_tokens: int
) -> None:
    """Per token to 2e-5 nats in float32."""
    world = world_of(model, dtype)
    examples = drawn_examples(random, size, world.backbone)
    outcomes: list[Tensor] = []
    both = [served(world, world.batch(examples, VIEWS, layout)) for layout in (packed_layout(world, row_tokens), PlainLayout())]
    for tensors in both:
        total = weighted(tensors, torch.Generator().manual_seed(0))
        found = torch.autograd.grad(total, list(world.backbone.trainable().values()))
        outcomes.append(torch.cat([gradient.double().flatten() for gradient in found]))

    per_token = [name for name in TENSOR_NAMES if TENSOR_NAMES[name].reduction == "token_"]
    assert {name for name in per_token if not torch.allclose(both[0][name], both[1][name], rtol=0, atol=values)} == set()
    assert float((outcomes[0] - outcomes[1]).norm()) <= gradients * float(outcomes[1].norm())


# --- mistakes ----------------------------------------------------------------------------------------------------------

SHOWN = Shown(token=3, number=2)
TOGETHER = [
    *(Scored((1, 3, 3, 8), answer, Picture("1")) for answer in [(9, 9, 2), (10, 9, 2), (9, 10, 11, 2)]),
    *(Scored((1, 3, 3, 8, 12), answer, Picture("2")) for answer in [(9, 2), (10, 2)]),
]


def rows_of(sequences: list[Scored]) -> Rows:
    return packed_layout(world_of(MODELS[0], torch.float64), 1000)(
        sequences, lambda images: torch.stack([torch.full((3, 2, 2), float(image.key)) for image in images])
    )


@pytest.mark.parametrize("mistake", WRONG_ROWS, ids=lambda mistake: mistake.__name__)
def test_the_law_of_rows_notices(mistake: Callable[[Rows], Rows]) -> None:
    rows = rows_of(TOGETHER)
    check_rows(rows, TOGETHER, SHOWN)

    with pytest.raises(AssertionError):
        check_rows(mistake(rows), TOGETHER, SHOWN)


@cache
def right(model: str, loss: str) -> Outcome:
    found, expected = steps_of(world_of(model, torch.float64), loss, together(model), 10_000, REFERENCES["computed"])
    check_equal(found, expected, EXACT)
    return expected


def together(model: str) -> tuple[EncodedExample, ...]:
    """Six examples, all trees in one row."""
    return drawn_examples(Random(5), 6, world_of(model, torch.float64).backbone)


def step_in_packed_rows(model: str, loss: str) -> Outcome:
    return steps_of(world_of(model, torch.float64), loss, together(model), 10_000, REFERENCES["computed"])[0]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("mistake", [mistake for mistake in WRONG_ROWS if mistake not in SAME_VALUES], ids=lambda mistake: mistake.__name__)
def test_the_comparison_notices_wrong_rows(mistake: Callable[[Rows], Rows], model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = right(model, "dpo")
    pack_wrongly(monkeypatch, mistake)

    with pytest.raises(AssertionError):
        check_equal(step_in_packed_rows(model, "dpo"), expected, EXACT)


@pytest.mark.parametrize(("mistake", "loss"), WRONG_VALUES.items(), ids=lambda part: getattr(part, "__name__", part))
def test_the_comparison_notices_wrong_values(
    mistake: Callable[[pytest.MonkeyPatch], None], loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = right(MODELS[0], loss)
    mistake(monkeypatch)

    with pytest.raises(AssertionError):
        check_equal(step_in_packed_rows(MODELS[0], loss), expected, EXACT)
