"""Packed rows give what plain rows give: every tensor and every gradient, in float64 to 1e-9, in float32 to the rounding of the model."""

from pathlib import Path

import pytest
import torch
from core_world import LORA, collated, encoded, make_backbone, make_pairs
from torch import Tensor

from medvlm_dpo.backbones.llava import LlavaBackbone
from medvlm_dpo.data.encoding import EncodedExample
from medvlm_dpo.data.segments import Layout, PackedLayout, PlainLayout
from medvlm_dpo.logps import served_tensors
from medvlm_dpo.reference import StartingReference
from medvlm_dpo.scoring import REFERENCE, policy_values
from medvlm_dpo.vocab import TENSOR_NAMES, VIEWS, Batch, TensorName, views_scored_by


def served(backbone: LlavaBackbone, names: list[TensorName], batch: Batch) -> dict[str, Tensor]:
    reference = StartingReference().values(backbone, batch, names) if views_scored_by(REFERENCE, names) else {}
    return served_tensors(names, batch, {"policy": policy_values(backbone, batch, names, reference), "reference": reference})


@pytest.fixture(scope="module")
def backbone(untrained_model: Path) -> LlavaBackbone:
    model = make_backbone(untrained_model)
    model.module.double()
    model.add_adapter(LORA, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.trainable().values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return model


def batch_in(layout: Layout, backbone: LlavaBackbone, examples: tuple[EncodedExample, ...]) -> Batch:
    return collated(examples, VIEWS, lambda images: backbone.pictures(images).double(), layout)


@pytest.mark.parametrize("row_tokens", [0, 400, 10_000])
@pytest.mark.parametrize("base", sorted({name.base for name in TENSOR_NAMES.values()}))
def test_every_tensor_and_its_gradient(backbone: LlavaBackbone, base: str, row_tokens: int) -> None:
    examples = encoded(make_pairs(4), backbone)
    names = [name for name in TENSOR_NAMES.values() if name.base == base]
    packed_layout = PackedLayout(backbone.encoder.image_token_id, row_tokens)
    plain, packed = (served(backbone, names, batch_in(layout, backbone, examples)) for layout in (PlainLayout(), packed_layout))
    weights = list(backbone.trainable().values())
    for name in names:
        torch.testing.assert_close(packed[str(name)], plain[str(name)], rtol=1e-9, atol=1e-11)
        if name.model == "policy" and name.reduction == "":
            expected, found = (torch.autograd.grad(values[str(name)].sum(), weights, retain_graph=True) for values in (plain, packed))
            scale = max(float(gradient.abs().max()) for gradient in expected)
            assert max(float((own - other).abs().max()) for own, other in zip(expected, found, strict=True)) <= 1e-9 * scale
