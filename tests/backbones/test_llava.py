"""The LLaVA backbone: the numbers of transformers, checkpoints that must fit, and LoRA on the language model only."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from core_world import LORA, collated, encoded, make_backbone, make_pairs
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from medvlm_dpo.backbones.adapter import LoraSettings
from medvlm_dpo.backbones.llava import LlavaBackbone, checkpoint_folder
from medvlm_dpo.errors import InputError
from medvlm_dpo.vocab import Batch

VIEWS = frozenset({"chosen", "rejected", "unmatched"})


def batch_of(backbone: LlavaBackbone, number: int = 3) -> Batch:
    return collated(encoded(make_pairs(number), backbone), VIEWS, backbone.pictures)


def logits_of(backbone: LlavaBackbone, batch: Batch) -> Tensor:
    with torch.no_grad():
        return backbone.head(backbone.hidden_states(batch.rows))


def transformers_logits(model: Any, batch: Batch) -> Tensor:
    """Row by row without padding, through the model's own forward; logits at the positions before the answer's tokens."""
    rows, found = batch.rows, []
    for row in range(rows.num_answers):
        length = int(rows.padding_mask[row].sum())
        pixels = rows.pictures[rows.image_rows[row]].unsqueeze(0).to(model.dtype)
        with torch.no_grad():
            logits = model(input_ids=rows.input_ids[row : row + 1, :length], pixel_values=pixels).logits[0]
        count = int((rows.answer_index == row).sum())
        found.append(logits[length - count - 1 : length - 1])
    return torch.cat(found)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-9)])
def test_logits_are_those_of_transformers(untrained_model: Path, dtype: torch.dtype, tolerance: float) -> None:
    backbone = make_backbone(untrained_model)
    backbone.module.to(dtype)
    batch = batch_of(backbone)
    assert len(batch.rows.padding_mask.sum(-1).unique()) > 1, "rows of different length"

    # "eager" would take its softmax in float32, whatever the dtype
    theirs: Any = LlavaForConditionalGeneration.from_pretrained(untrained_model, local_files_only=True, attn_implementation="sdpa")

    ours = logits_of(backbone, batch)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, transformers_logits(theirs.to(dtype), batch), rtol=0, atol=tolerance)


def test_the_picture_matters_and_each_row_sees_its_own(untrained_model: Path) -> None:
    backbone = make_backbone(untrained_model)
    batch = batch_of(backbone)
    other = Batch(**{**vars(batch), "rows": type(batch.rows)(**{**vars(batch.rows), "image_rows": batch.rows.image_rows.roll(1)})})
    changed = batch.rows.image_rows != other.rows.image_rows

    difference = (logits_of(backbone, batch) - logits_of(backbone, other)).abs().amax(-1)

    assert bool((difference[changed[batch.rows.answer_index]] > 1e-4).all())
    assert bool((difference[~changed[batch.rows.answer_index]] < 1e-5).all())


def test_views_of_one_image_encode_it_once(untrained_model: Path) -> None:
    backbone = make_backbone(untrained_model)
    batch = collated(encoded(make_pairs(3), backbone)[:1], VIEWS, backbone.pictures)
    encoded_images: list[int] = []
    tower = backbone.module.get_submodule("model.vision_tower")
    tower.register_forward_hook(lambda _, inputs, __: encoded_images.append(len(inputs[0])))

    logits_of(backbone, batch)
    logits_of(backbone, batch)  # policy, then reference

    assert batch.rows.num_answers == 3
    assert encoded_images == [1]


# --- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(untrained_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(untrained_model, tmp_path / "copy"))


NAME = "language_model.model.layers.1.self_attn.v_proj.weight"


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    assert NAME in tensors
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def remove(tensors: dict[str, Tensor]) -> None:
    del tensors[NAME]


def add(tensors: dict[str, Tensor]) -> None:
    tensors["language_model.model.layers.1.self_attn.extra_proj.weight"] = torch.zeros(2)


def reshape(tensors: dict[str, Tensor]) -> None:
    tensors[NAME] = tensors[NAME][:5].contiguous()


@pytest.mark.parametrize(
    ("change", "kind", "tensor"),
    [(remove, "1 missing", "layers.1.self_attn.v_proj"), (add, "1 unexpected", "extra_proj"), (reshape, "1 mismatched", "v_proj")],
)
def test_every_tensor_must_fit(copy: Path, change: Callable[[dict[str, Tensor]], None], kind: str, tensor: str) -> None:
    rewrite(copy, change)
    backbone = make_backbone(copy, loaded=False)

    with pytest.raises(InputError) as caught:
        backbone.load()

    assert kind in str(caught.value)
    assert tensor in str(caught.value)
    assert str(copy) in str(caught.value)


def test_damaged_weights(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])

    with pytest.raises(InputError, match="its weights cannot be read"):
        make_backbone(copy)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"])
def test_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()

    with pytest.raises(InputError) as caught:
        make_backbone(copy, loaded=False)

    assert (name if name != "model.safetensors" else "*.safetensors") in str(caught.value)
    assert "a test model" in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json"])
def test_damaged_settings(copy: Path, name: str) -> None:
    (copy / name).write_text("{ not json")

    with pytest.raises(InputError, match="cannot be read"):
        make_backbone(copy, loaded=False)


def test_another_architecture_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "llava_mistral"}))

    with pytest.raises(InputError, match="model_type 'llava_mistral', expected 'llava'"):
        make_backbone(copy, loaded=False)


def test_model_without_checkpoint_says_what_to_get() -> None:
    with pytest.raises(InputError) as caught:
        checkpoint_folder(None, "LLaVA-Med v1.5 (15.1 GB; research only)")

    message = str(caught.value)
    assert "LLaVA-Med v1.5 (15.1 GB; research only)" in message
    assert "model.checkpoint=/path/to/its/folder" in message


@pytest.mark.parametrize("checkpoint", ["builtin:phantom_lava", "/nowhere/at/all"])
def test_unknown_folder(checkpoint: str) -> None:
    with pytest.raises(InputError, match=f"model.checkpoint={checkpoint}: there is no such folder"):
        checkpoint_folder(checkpoint, "a test model")


def test_context_is_the_smaller_of_the_two(untrained_model: Path) -> None:
    assert make_backbone(untrained_model, loaded=False, max_length=100).encoder.max_length == 100
    assert make_backbone(untrained_model, loaded=False, max_length=10**6).encoder.max_length == 1024


# --- adapters ------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapted(untrained_model: Path) -> LlavaBackbone:
    backbone = make_backbone(untrained_model)
    backbone.add_adapter(LORA, seed=0)
    return backbone


def disturb(backbone: LlavaBackbone, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in backbone.trainable().values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))


def test_lora_sits_on_the_language_model_only(adapted: LlavaBackbone) -> None:
    names = adapted.trainable()

    assert names
    assert all("language_model" in name and "lora_" in name for name in names)
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names} == set(LORA.target_modules)
    vision = [name for name, _ in adapted.module.named_modules() if "vision_tower" in name and name.endswith("q_proj")]
    assert vision, "the tower has layers of the same names, which must stay as they are"


def test_adapter_can_be_switched_off_bit_for_bit(adapted: LlavaBackbone, untrained_model: Path) -> None:
    batch = batch_of(adapted)
    before = logits_of(make_backbone(untrained_model), batch)
    assert torch.equal(logits_of(adapted, batch), before), "a fresh adapter adds exactly 0"
    disturb(adapted)

    with adapted.adapter_disabled():
        off = logits_of(adapted, batch)

    assert torch.equal(off, before)
    assert not torch.allclose(logits_of(adapted, batch), before, atol=1e-3)


def test_fresh_adapter_is_a_function_of_the_seed(untrained_model: Path) -> None:
    def first_half(seed: int) -> Tensor:
        backbone = make_backbone(untrained_model)
        backbone.add_adapter(LORA, seed=seed)
        return torch.cat([weight.flatten() for name, weight in backbone.trainable().items() if "lora_A" in name])

    assert torch.equal(first_half(0), first_half(0))
    assert not torch.equal(first_half(0), first_half(1))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft 0.21 asks transformers 5 so
def test_saved_adapter_is_loaded_by_peft_and_by_us(adapted: LlavaBackbone, untrained_model: Path, tmp_path: Path) -> None:
    disturb(adapted)
    batch = batch_of(adapted)
    adapted.save_adapter(tmp_path / "adapter")
    ours = logits_of(adapted, batch)

    base = LlavaForConditionalGeneration.from_pretrained(untrained_model, local_files_only=True)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    again = make_backbone(untrained_model)
    again.add_adapter(LORA, seed=5)
    again.load_adapter(tmp_path / "adapter")

    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    torch.testing.assert_close(transformers_logits(theirs, batch), ours, rtol=0, atol=2e-5)
    assert torch.equal(logits_of(again, batch), ours)


def test_adapter_settings_hold_no_path(adapted: LlavaBackbone, untrained_model: Path, tmp_path: Path) -> None:
    adapted.save_adapter(tmp_path / "adapter")

    text = (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == untrained_model.name
    assert str(untrained_model.parent) not in text
    assert not [value for value in json.loads(text).values() if isinstance(value, str) and value.startswith("/")]


def test_adapter_of_another_rank_is_refused(adapted: LlavaBackbone, untrained_model: Path, tmp_path: Path) -> None:
    adapted.save_adapter(tmp_path / "adapter")
    other = make_backbone(untrained_model)
    other.add_adapter(LoraSettings(rank=2, alpha=8, target_modules=LORA.target_modules), seed=0)

    with pytest.raises(InputError, match=r"the saved adapter does not fit this model: .* tensors differ"):
        other.load_adapter(tmp_path / "adapter")


def test_adapter_of_fewer_layers_is_refused(adapted: LlavaBackbone, untrained_model: Path, tmp_path: Path) -> None:
    other = make_backbone(untrained_model)
    other.add_adapter(LoraSettings(rank=LORA.rank, alpha=8, target_modules=["q_proj"]), seed=0)
    other.save_adapter(tmp_path / "adapter")

    with pytest.raises(InputError, match="does not fit"):
        adapted.load_adapter(tmp_path / "adapter")


def test_layers_that_do_not_exist_are_refused_with_those_that_do(untrained_model: Path) -> None:
    with pytest.raises(InputError, match=r"target_modules=\['qproj'\].*'q_proj'"):
        make_backbone(untrained_model).add_adapter(LoraSettings(rank=2, alpha=4, target_modules=["qproj"]), seed=0)


def test_vision_layers_alone_are_no_target(untrained_model: Path) -> None:
    with pytest.raises(InputError, match="the language model has none"):
        make_backbone(untrained_model).add_adapter(LoraSettings(rank=2, alpha=4, target_modules=["fc1"]), seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "adapter.rank"),
        ({"alpha": 0.0}, "adapter.alpha"),
        ({"alpha": float("nan")}, "adapter.alpha"),
        ({"target_modules": []}, "adapter.target_modules"),
    ],
)
def test_adapter_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LoraSettings(**{**vars(LORA), **changes})
