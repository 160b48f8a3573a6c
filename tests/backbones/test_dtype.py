"""The dtype setting: weights in it, adapters and values in float32 whatever it is, and names that do not exist."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from core_world import LORA, PROMPT, SETTINGS, collated, encoded, loss_node, make_backbone, make_pairs
from torch import Tensor

from medvlm_dpo.backbones.llava import LlavaBackbone
from medvlm_dpo.data.segments import Layout, PackedLayout, PlainLayout
from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.terms import build_objective
from medvlm_dpo.reference import StartingReference
from medvlm_dpo.scoring import policy_values
from medvlm_dpo.training import CellFiles, TrainedCell, train
from medvlm_dpo.vocab import TensorName

NAMES = [TensorName("policy", view, "", "logps") for view in ("chosen", "rejected")]


def backbone_in(folder: Path, dtype: str | None) -> LlavaBackbone:
    backbone = LlavaBackbone(checkpoint=str(folder), prompt=PROMPT, source="a test model", max_length=512, dtype=dtype)
    backbone.load()
    return backbone


def values_of(backbone: LlavaBackbone, layout: Layout) -> Tensor:
    """Of every response token."""
    batch = collated(encoded(make_pairs(6), backbone), ("chosen", "rejected"), backbone.pictures, layout)
    with torch.no_grad():
        (values,) = policy_values(backbone, batch, NAMES).values()
    return values


@pytest.mark.parametrize(("dtype", "expected"), [(None, torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_weights_have_the_dtype_and_adapters_are_float32(dtype: str | None, expected: torch.dtype, untrained_model: Path) -> None:
    backbone = backbone_in(untrained_model, dtype)
    assert {weight.dtype for weight in backbone.module.parameters()} == {expected}

    backbone.add_adapter(LORA, seed=0)

    assert {weight.dtype for weight in backbone.trainable().values()} == {torch.float32}
    assert values_of(backbone, PlainLayout()).dtype == torch.float32


def test_null_is_the_checkpoints_own(untrained_model: Path, tmp_path: Path) -> None:
    half = backbone_in(untrained_model, "bfloat16")
    half.module.save_pretrained(tmp_path / "half")  # pyright: ignore[reportCallIssue] - a transformers model
    for file in untrained_model.iterdir():
        if not (tmp_path / "half" / file.name).exists():
            (tmp_path / "half" / file.name).write_bytes(file.read_bytes())

    assert {weight.dtype for weight in backbone_in(tmp_path / "half", None).module.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in backbone_in(tmp_path / "half", "float32").module.parameters()} == {torch.float32}


def test_packed_rows_in_bfloat16_differ_by_rounding_only(untrained_model: Path) -> None:
    """From float32 each differs by the rounding of the weights, from each other by less."""
    backbone, exact = backbone_in(untrained_model, "bfloat16"), make_backbone(untrained_model)
    packed, plain = (values_of(backbone, layout) for layout in (PackedLayout(backbone.encoder.image_token_id), PlainLayout()))
    rounding = float((plain - values_of(exact, PlainLayout())).abs().max())

    assert 0 < rounding < 0.5
    assert float((packed - plain).abs().max()) < max(rounding, 0.05)


def trained(
    model: Path, folder: Path, dtype: str | None, layout: str = "auto", *, recomputed: bool = False
) -> tuple[TrainedCell, LlavaBackbone]:
    backbone = backbone_in(model, dtype)
    settings = replace(SETTINGS, activation_checkpointing=recomputed)
    objective = build_objective(loss_node("dpo"), batch_size=settings.batch_size)
    splits = {"train": encoded(make_pairs(8), backbone), "validation": encoded(make_pairs(2, "validation"), backbone)}
    folder.mkdir()
    start = StartingReference()
    rows = PackedLayout(backbone.encoder.image_token_id) if layout == "auto" else PlainLayout()
    files = CellFiles(folder / "checkpoint", folder / "metrics.jsonl", folder / "adapter")
    cell = train(backbone, objective, start, splits, start=start, layout=rows, adapter=LORA, settings=settings, seed=0, files=files)
    return cell, backbone


def flat(backbone: LlavaBackbone) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in backbone.trainable().values()])


def test_a_run_in_bfloat16(untrained_model: Path, tmp_path: Path) -> None:
    """Three steps: it starts from margins that are 0 to rounding, and learns what a float32 run learns."""
    cell, half = trained(untrained_model, tmp_path / "half", "bfloat16")
    _, plain = trained(untrained_model, tmp_path / "plain", "bfloat16", "plain")
    _, whole = trained(untrained_model, tmp_path / "whole", "float32")
    fresh = backbone_in(untrained_model, "bfloat16")
    fresh.add_adapter(LORA, seed=0)
    moved = [flat(model) - flat(fresh) for model in (half, plain, whole)]

    assert cell.training["steps"] == 3
    assert all(weight.dtype == torch.float32 for weight in half.trainable().values())
    assert all(bool(update.isfinite().all()) and float(update.norm()) > 0 for update in moved)
    for other in moved[1:]:
        assert float(torch.cosine_similarity(moved[0], other, dim=0)) > 0.8


def test_recomputed_activations_train_the_same_adapter(untrained_model: Path, tmp_path: Path) -> None:
    _, kept = trained(untrained_model, tmp_path / "kept", None)
    _, recomputed = trained(untrained_model, tmp_path / "recomputed", None, recomputed=True)
    torch.testing.assert_close(flat(recomputed), flat(kept), rtol=0, atol=1e-7)
    layers = recomputed.module.get_submodule("base_model.model.model.language_model.layers")
    assert all(isinstance(layer.forward, partial) for layer in layers.children())


@pytest.mark.parametrize("dtype", ["float16", "bf16", "float64", ""])
def test_unknown_dtypes(dtype: str, untrained_model: Path) -> None:
    with pytest.raises(InputError, match=f"model.dtype={dtype}: expected float32 or bfloat16, or null"):
        backbone_in(untrained_model, dtype)
