"""Kept values of the starting model are what it gives now, for every tensor of the grammar, in any micro-batch; nothing else is served."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from core_world import LORA, collated, encoded, make_backbone, make_pairs

from medvlm_dpo.backbones.llava import LlavaBackbone
from medvlm_dpo.cache.store import BlockStore
from medvlm_dpo.cache.tensors import array_of, tensor_of
from medvlm_dpo.data.collate import answers_of_views
from medvlm_dpo.data.encoding import EncodedExample
from medvlm_dpo.data.segments import PackedLayout
from medvlm_dpo.reference import StartingReference
from medvlm_dpo.reference_cache import CachedReference, Column, columns_of, distance, keys_of
from medvlm_dpo.reference_fill import EXAMPLES_PER_BLOCK, ReferenceFill, Work
from medvlm_dpo.scoring import HIDDEN, REFERENCE
from medvlm_dpo.vocab import TENSOR_NAMES, VIEWS, Batch

NAMES = [name for name in TENSOR_NAMES.values() if name.model == REFERENCE or name.base == "forward_kl"]


def quiet(_done: int, _total: int) -> None:
    """Reports nothing."""


class World:
    """A model and examples with every view; values are kept in a store under a folder."""

    def __init__(self, model: Path, folder: Path, dtype: torch.dtype, number: int = 5) -> None:
        self.dtype, self.backbone = dtype, make_backbone(model)
        self.backbone.module.to(dtype)
        self.backbone.add_adapter(LORA, seed=0)
        self.examples = encoded(make_pairs(number), self.backbone)
        self.store = BlockStore(folder, identity={"model": "test"})
        self.fill = ReferenceFill(self.backbone, self.collated, [Work(self.examples, columns_of(NAMES))])

    def batch(self, examples: Sequence[EncodedExample], views: Sequence[str] = VIEWS) -> Batch:
        layout = PackedLayout(self.backbone.encoder.image_token_id)
        return collated(examples, views, lambda images: self.backbone.pictures(images).to(self.dtype), layout)

    def collated(self, examples: Sequence[EncodedExample], views: frozenset[str]) -> list[Batch]:
        return [self.batch(examples, sorted(views))]

    def filled(self) -> CachedReference:
        self.fill.fill(self.store, quiet)
        return CachedReference(self.store, dtype=self.dtype)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5), (torch.bfloat16, 0.1)], ids=["float64", "float32", "bfloat16"]
)
def test_every_reference_tensor(untrained_model: Path, tmp_path: Path, dtype: torch.dtype, tolerance: float) -> None:
    world = World(untrained_model, tmp_path, dtype)
    cached = world.filled()
    for places in ([0, 1, 2, 3, 4], [4, 1], [2]):
        batch = world.batch([world.examples[place] for place in places])
        expected = StartingReference().values(world.backbone, batch, NAMES)
        found = cached.values(world.backbone, batch, NAMES)
        assert found.keys() == expected.keys() >= {HIDDEN, "logps", "hallucinated_logps"}
        for base, values in expected.items():
            views = {column.view for column in columns_of(NAMES) if column.base == base}
            asked = answers_of_views(batch, views)[batch.rows.answer_index]
            assert found[base].dtype == values.dtype
            torch.testing.assert_close(found[base][asked], values[asked], rtol=tolerance, atol=tolerance)
            assert not found[base][~asked].any()
    assert cached.num_computed == 0


def test_reading_needs_no_model(untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(untrained_model, tmp_path, torch.float32)
    cached = world.filled()
    batch = world.batch(world.examples)
    monkeypatch.setattr(LlavaBackbone, "hidden_states", lambda *_: pytest.fail("a forward pass"))
    assert cached.values(world.backbone, batch, NAMES).keys() >= {HIDDEN, "logps"}


def test_only_what_some_tensor_reads_is_kept(untrained_model: Path, tmp_path: Path) -> None:
    world = World(untrained_model, tmp_path, torch.float32)
    columns = columns_of([TENSOR_NAMES["reference_chosen_mean_logps"], TENSOR_NAMES["policy_rejected_forward_kl"]])
    assert columns == {Column("chosen", "logps"), Column("rejected", HIDDEN)}
    assert columns_of([TENSOR_NAMES["policy_chosen_logps"]]) == frozenset()
    fill = ReferenceFill(world.backbone, world.collated, [Work(world.examples, columns)])
    fill.fill(world.store, quiet)
    (example, *_) = world.examples
    keys = keys_of(example, columns)
    assert world.store[keys[Column("chosen", "logps")]].shape == (len(example.answers["chosen"]),)
    assert world.store[keys[Column("rejected", HIDDEN)]].shape[0] == len(example.answers["rejected"])
    assert world.store.missing(keys_of(example, columns_of(NAMES)).values()), "nobody asked for the others"


def test_what_is_missing_is_computed(untrained_model: Path, tmp_path: Path) -> None:
    world = World(untrained_model, tmp_path, torch.float64)
    cached = world.filled()
    (stranger,) = (replace(world.examples[0], answers={**world.examples[0].answers, "chosen": (7, 8, 2)}),)
    names = [TENSOR_NAMES["reference_chosen_logps"]]
    batch = world.batch([stranger, world.examples[1]], ("chosen",))
    torch.testing.assert_close(
        cached.values(world.backbone, batch, names)["logps"], StartingReference().values(world.backbone, batch, names)["logps"]
    )
    assert cached.num_computed == 1


def test_unpaired_examples(untrained_model: Path, tmp_path: Path) -> None:
    world = World(untrained_model, tmp_path, torch.float64)
    first, second, *_ = world.examples
    world.examples = (
        replace(first, answers={"chosen": first.answers["chosen"]}),
        replace(second, answers={"rejected": second.answers["rejected"]}),
    )
    names = [TENSOR_NAMES["reference_chosen_logps"], TENSOR_NAMES["reference_rejected_collision_logps"]]
    world.fill = ReferenceFill(world.backbone, world.collated, [Work(world.examples, columns_of(names))])
    cached = world.filled()
    for examples in (world.examples, world.examples[:1]):
        batch = world.batch(examples, ("chosen", "rejected"))
        expected = StartingReference().values(world.backbone, batch, names)
        found = cached.values(world.backbone, batch, names)
        assert {base: value.tolist() for base, value in found.items()} == {
            base: pytest.approx(value.tolist(), rel=1e-9, abs=1e-12) for base, value in expected.items()
        }
    assert cached.num_computed == 0


@pytest.mark.parametrize(
    "changed",
    [
        lambda example: replace(example, prompt=(*example.prompt[:-1], 5)),
        lambda example: replace(example, answers={**example.answers, "chosen": (*example.answers["chosen"][:-1], 5, 2)}),
        lambda example: replace(example, image=make_pairs(40)[-1].image),
        # The border between prompt and answer decides what is predicted.
        lambda example: replace(
            example,
            prompt=(*example.prompt, example.answers["chosen"][0]),
            answers={**example.answers, "chosen": example.answers["chosen"][1:]},
        ),
    ],
    ids=["prompt", "answer", "picture", "border"],
)
def test_another_sequence_has_another_key(untrained_model: Path, changed: Callable[[EncodedExample], EncodedExample]) -> None:
    example = encoded(make_pairs(2), make_backbone(untrained_model, loaded=False))[0]
    column = Column("chosen", "logps")
    assert keys_of(changed(example), [column])[column] != keys_of(example, [column])[column]


def test_keys_tell_bases_and_corrupted_pictures_apart(untrained_model: Path) -> None:
    examples = encoded(make_pairs(2), make_backbone(untrained_model, loaded=False))
    columns = columns_of(NAMES)
    keys = [key for example in examples for key in keys_of(example, columns).values()]
    assert len(set(keys)) == len(keys)
    hallucinated = Column("chosen", "hallucinated_logps")
    other = replace(examples[0], corrupted=examples[1].corrupted)
    assert keys_of(other, [hallucinated]) != keys_of(examples[0], [hallucinated])
    assert keys_of(other, [Column("chosen", "logps")]) == keys_of(examples[0], [Column("chosen", "logps")])
    assert keys_of(replace(examples[0], corrupted=None), [hallucinated, Column("chosen_corrupt", "logps")]) == {}


def test_blocks_are_the_same_in_every_process(untrained_model: Path) -> None:
    examples = encoded(make_pairs(EXAMPLES_PER_BLOCK + 3), make_backbone(untrained_model, loaded=False))
    columns = columns_of([TENSOR_NAMES["reference_chosen_logps"], TENSOR_NAMES["reference_rejected_logps"]])
    groups = Work(examples, columns).groups()
    assert [len(group) for group in groups] == [2 * EXAMPLES_PER_BLOCK, 6]
    assert groups == Work(examples, frozenset(sorted(columns, reverse=True))).groups()
    assert Work(examples, frozenset()).groups() == []


def test_a_fill_that_was_stopped_goes_on(untrained_model: Path, tmp_path: Path) -> None:
    world = World(untrained_model, tmp_path, torch.float32, number=2 * EXAMPLES_PER_BLOCK + 1)
    names = [TENSOR_NAMES["reference_chosen_logps"]]
    fill = ReferenceFill(world.backbone, world.collated, [Work(world.examples, columns_of(names))])

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill.fill(world.store, stop)
    assert fill.missing(world.store) == EXAMPLES_PER_BLOCK + 1, "the finished block is there"
    seen: list[tuple[int, int]] = []
    fill.fill(world.store, lambda done, total: seen.append((done, total)))
    assert seen == [(2 * EXAMPLES_PER_BLOCK, 2 * EXAMPLES_PER_BLOCK + 1), (2 * EXAMPLES_PER_BLOCK + 1,) * 2]
    assert fill.missing(world.store) == 0


def test_a_torn_array_is_passed_over_and_made_again(untrained_model: Path, tmp_path: Path) -> None:
    world = World(untrained_model, tmp_path, torch.float32)
    world.fill = ReferenceFill(world.backbone, world.collated, [Work(world.examples[:2], frozenset({Column("chosen", "logps")}))])
    world.filled()
    (block,) = tmp_path.rglob("*.block")
    content = bytearray(block.read_bytes())
    content[-5] ^= 1
    block.write_bytes(content)
    world.store = BlockStore(tmp_path, identity={"model": "test"})
    before = world.fill.missing(world.store)

    assert world.fill.difference(world.store) < 1e-4

    assert (before, world.fill.missing(world.store)) == (0, 1)
    world.fill.fill(world.store, quiet)
    assert world.fill.missing(world.store) == 0


def test_every_base_is_checked(untrained_model: Path, tmp_path: Path) -> None:
    world = World(untrained_model, tmp_path, torch.float32, number=16)
    columns = frozenset(Column(view, base) for view in ("chosen", "rejected") for base in ("collision_logps", "logps", HIDDEN))
    work = [Work(world.examples, columns)]
    fill = ReferenceFill(world.backbone, world.collated, work)
    made = dict(fill.compute([key for group in work[0].groups() for key in group]))
    wrong = {key: array + np.float32(0.5) if key.startswith("logps/") else array for key, array in made.items()}
    world.store.fill(work[0].groups(), lambda keys: {key: wrong[key] for key in keys}, report=quiet)
    assert fill.difference(world.store) == pytest.approx(0.5, abs=1e-3)


def test_what_is_not_a_number_is_far_away(untrained_model: Path, tmp_path: Path) -> None:
    world = World(untrained_model, tmp_path, torch.float32)
    work = [Work(world.examples, frozenset({Column("chosen", "logps")}))]
    fill = ReferenceFill(world.backbone, world.collated, work)
    (keys,) = work[0].groups()
    made = dict(fill.compute(keys))
    made[keys[0]] = made[keys[0]] * np.float32("nan")
    world.store.fill([keys], lambda asked: {key: made[key] for key in asked}, report=quiet)
    assert np.isnan(fill.difference(world.store))


def test_bfloat16_is_measured_by_its_mean() -> None:
    own, other = torch.zeros(100), torch.zeros(100)
    other[7] = 0.5
    assert distance(own, other, torch.float32) == 0.5
    assert distance(own, other, torch.bfloat16) == pytest.approx(0.005)
    assert np.isnan(distance(own, other * torch.nan, torch.bfloat16))


@pytest.mark.parametrize("base", ["logps", HIDDEN])
def test_stored_arrays_of_another_model_are_noticed(untrained_model: Path, tmp_path: Path, base: str) -> None:
    world = World(untrained_model, tmp_path, torch.float32)
    work = [Work(world.examples, frozenset({Column("chosen", base)}))]
    fill = ReferenceFill(world.backbone, world.collated, work)
    assert fill.difference(world.store) == 0.0, "nothing is stored"
    made = dict(fill.compute([key for group in work[0].groups() for key in group]))
    world.store.fill(work[0].groups(), lambda keys: {key: made[key] * np.float32(1.01) for key in keys}, report=quiet)
    assert fill.difference(world.store) > 5e-3
    assert ReferenceFill(world.backbone, world.collated, []).difference(world.store) == 0.0


def test_bits_of_bfloat16_survive() -> None:
    values = torch.randn((3, 4), generator=torch.Generator().manual_seed(0)).bfloat16()
    stored = array_of(values)
    assert stored.dtype == np.uint16
    assert torch.equal(tensor_of(stored), values)
    assert torch.equal(tensor_of(array_of(values.double())), values.double())
