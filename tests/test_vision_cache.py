"""Kept features of pictures: equal to computed ones, never those of another tower, and passed over when the tower trains."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from core_world import LORA, PROMPT, collated, encoded, make_backbone, make_pairs, make_questions, picture
from safetensors.torch import load_file, save_file
from torch import Tensor

from medvlm_dpo import vision_cache
from medvlm_dpo.backbones.llava import LlavaBackbone
from medvlm_dpo.data.phantom.pairs import PhantomImage
from medvlm_dpo.data.segments import Layout, PackedLayout, PlainLayout
from medvlm_dpo.errors import InputError
from medvlm_dpo.evaluation.generation import generate_answers
from medvlm_dpo.vision_cache import PICTURES_PER_BLOCK, VisionCache

IMAGES = [picture(number) for number in range(3)]


def silent(done: int, total: int) -> None:
    """Reports nothing."""


def filled(backbone: LlavaBackbone, folder: Path, images: Sequence[PhantomImage] = IMAGES) -> VisionCache:
    cache = VisionCache(backbone, folder)
    assert cache.fill(images, silent) is None
    backbone.use_vision_cache(cache)
    return cache


def runs_of_the_tower(backbone: LlavaBackbone) -> list[int]:
    """Pictures of every run, from now on."""
    runs: list[int] = []
    tower = backbone.module.get_submodule("model.vision_tower")
    tower.register_forward_hook(lambda _, inputs, __: runs.append(len(inputs[0])))
    return runs


def kept(cache: VisionCache, images: Sequence[PhantomImage]) -> Tensor:
    features = cache.features(images)
    assert features is not None
    return features


# --- equal --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_features_of_the_same_batch_are_equal_bit_for_bit(name: str, untrained_model: Path, tmp_path: Path) -> None:
    backbone = LlavaBackbone(checkpoint=str(untrained_model), prompt=PROMPT, source="a test model", max_length=512, dtype=name)
    backbone.load()
    computed = backbone.tower_features(IMAGES)
    assert computed.dtype == getattr(torch, name)
    assert len({float(own.float().mean()) for own in computed}) == 3, "pictures that look alike would prove nothing"
    filled(backbone, tmp_path)

    again = VisionCache(backbone, tmp_path)  # as another cell opens it

    assert torch.equal(kept(again, IMAGES), computed)
    assert torch.equal(kept(again, IMAGES[::-1]), computed.flip(0))
    assert kept(again, IMAGES).dtype == computed.dtype
    assert torch.equal(backbone.pictures(IMAGES), computed)


@pytest.mark.parametrize("layout", ["plain", "packed"])
def test_hidden_states_are_those_without_a_cache(layout: str, untrained_model: Path, tmp_path: Path) -> None:
    backbone = make_backbone(untrained_model)
    backbone.module.double()
    examples = encoded(make_pairs(4), backbone)
    rows: Layout = PlainLayout() if layout == "plain" else PackedLayout(backbone.encoder.image_token_id)

    def states() -> Tensor:
        with torch.no_grad():
            return backbone.hidden_states(collated(examples, ("chosen", "rejected"), backbone.pictures, rows).rows)

    expected = states()
    cache = VisionCache(backbone, tmp_path)
    for example in examples:  # one by one: other batch shapes than those of a step
        assert cache.fill([example.image], silent) is None
    backbone.use_vision_cache(cache)
    runs = runs_of_the_tower(backbone)
    found = states()

    assert runs == []
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    backbone.use_vision_cache(None)
    assert torch.equal(states(), expected)


def test_answers_to_questions_read_it(untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, questions = make_backbone(untrained_model), make_questions(6)

    def answers() -> Any:
        return generate_answers(backbone, questions, max_new_tokens=4, batch_size=3, report=silent)

    expected = answers()
    cache = VisionCache(backbone, tmp_path)
    assert cache.fill([question.image for question in questions], silent) is None
    backbone.use_vision_cache(cache)
    runs = runs_of_the_tower(backbone)
    monkeypatch.setattr(LlavaBackbone, "pixels", lambda *_: pytest.fail("a picture was read"))

    assert answers() == expected
    assert runs == []


# --- filling ------------------------------------------------------------------------------------------------------------


def test_each_picture_is_encoded_once_in_blocks(untrained_model: Path, tmp_path: Path) -> None:
    backbone, number = make_backbone(untrained_model), PICTURES_PER_BLOCK + 5
    images = [picture(place) for place in range(number)]
    runs, told = runs_of_the_tower(backbone), list[tuple[int, int]]()
    cache = VisionCache(backbone, tmp_path)

    assert cache.fill([*images, *images], lambda done, total: told.append((done, total))) is None
    assert cache.fill(images, silent) is None
    assert VisionCache(backbone, tmp_path).fill(images[::-1], silent) is None

    assert runs == [PICTURES_PER_BLOCK, 5]
    assert told == [(PICTURES_PER_BLOCK, number), (number, number)]
    assert len(kept(cache, images)) == number


def test_no_gradient_flows_into_what_is_kept(untrained_model: Path, tmp_path: Path) -> None:
    backbone = make_backbone(untrained_model)
    backbone.add_adapter(LORA, seed=0)
    assert not kept(filled(backbone, tmp_path), IMAGES).requires_grad


def test_pictures_beyond_the_limit_are_computed(untrained_model: Path, tmp_path: Path) -> None:
    backbone = make_backbone(untrained_model)
    block = kept(filled(backbone, tmp_path / "size"), IMAGES).numpy().nbytes / 1e9
    backbone.use_vision_cache(None)
    cache = VisionCache(backbone, tmp_path / "small", limit_gb=1.6 * block)
    assert cache.fill(IMAGES, silent) is None

    others = [picture(number) for number in range(10, 13)]
    note = cache.fill([*IMAGES, *others], silent) or ""
    note_again = cache.fill(others, silent) or ""

    assert note.startswith("3 of 6 pictures are not in the vision cache and are encoded in every step")
    assert "would exceed limit_gb" in note
    assert note_again.startswith("3 of 3 pictures")
    backbone.use_vision_cache(cache)
    assert backbone.pictures(IMAGES).dim() == 3
    assert backbone.pictures(others).dim() == 4
    assert torch.equal(backbone.pictures([IMAGES[0], others[0]]), torch.stack([backbone.pixels(IMAGES[0]), backbone.pixels(others[0])]))


def test_a_torn_block_is_not_used(untrained_model: Path, tmp_path: Path) -> None:
    backbone = make_backbone(untrained_model)
    filled(backbone, tmp_path)
    (block,) = tmp_path.rglob("*.block")
    content = bytearray(block.read_bytes())
    content[-5] ^= 1
    block.write_bytes(content)

    cache = VisionCache(backbone, tmp_path)

    assert cache.features(IMAGES) is None
    assert cache.fill(IMAGES, silent) is None
    assert torch.equal(kept(cache, IMAGES), backbone.tower_features(IMAGES))
    assert len({block.parent for block in tmp_path.rglob("*.block")}) == 1, "it was looked for where it lies"


def test_a_place_that_is_no_folder(untrained_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a folder"):
        VisionCache(make_backbone(untrained_model), tmp_path / "file")


# --- which features -----------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(untrained_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(untrained_model, tmp_path / "copy"))


def change_weight(folder: Path, part: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if part in name)
    tensors[name] += 0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_setting(folder: Path, file: str, **changes: Any) -> None:
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**settings, **changes}))


CHANGES: dict[str, tuple[Any, bool]] = {
    "a weight of the tower": (lambda folder: change_weight(folder, "vision_tower"), True),
    "another layer": (lambda folder: change_setting(folder, "config.json", vision_feature_layer=-2), True),
    "several layers": (lambda folder: change_setting(folder, "config.json", vision_feature_layer=[-1]), False),
    "preprocessing": (lambda folder: change_setting(folder, "preprocessor_config.json", image_mean=[0.4, 0.5, 0.5]), True),
    "a weight of the language model": (lambda folder: change_weight(folder, "language_model"), False),
    "a weight of the projector": (lambda folder: change_weight(folder, "projector"), False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_features_are_those_of_the_tower_and_its_pictures(change: str, untrained_model: Path, copy: Path, tmp_path: Path) -> None:
    cache = filled(make_backbone(untrained_model), tmp_path / "cache")
    edit, other_features = CHANGES[change]
    edit(copy)
    other = make_backbone(copy)
    found = VisionCache(other, tmp_path / "cache").features(IMAGES)

    assert (found is None) == other_features
    assert torch.equal(other.tower_features(IMAGES), kept(cache, IMAGES)) != other_features


@pytest.mark.parametrize("name", ["CHECK_NAME", "version"])
def test_other_ways_to_pixels_have_features_of_their_own(
    name: str, untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = make_backbone(untrained_model)
    filled(backbone, tmp_path)
    monkeypatch.setattr(vision_cache, name, {"CHECK_NAME": "image-0", "version": lambda _: "0"}[name])
    assert VisionCache(backbone, tmp_path).features(IMAGES) is None


def test_a_dtype_has_features_of_its_own(untrained_model: Path, tmp_path: Path) -> None:
    backbone = make_backbone(untrained_model)
    filled(backbone, tmp_path)
    backbone.module.double()
    assert VisionCache(backbone, tmp_path).features(IMAGES) is None


@pytest.mark.parametrize("weight", ["model.vision_tower.embeddings.class_embedding", "model.multi_modal_projector.linear_1.weight"])
def test_a_tower_that_trains_has_none(weight: str, untrained_model: Path, tmp_path: Path) -> None:
    backbone = make_backbone(untrained_model)
    cache = filled(backbone, tmp_path)
    assert backbone.vision_obstacle() is None
    assert backbone.pictures(IMAGES).dim() == 3

    dict(backbone.module.named_parameters())[weight].requires_grad_()

    assert weight in (backbone.vision_obstacle() or "")
    assert torch.equal(backbone.pictures(IMAGES), torch.stack([backbone.pixels(image) for image in IMAGES]))
    with pytest.raises(ValueError, match="no vision cache: the weight"):
        VisionCache(backbone, tmp_path)
    assert cache.features(IMAGES) is not None
