"""Policy values with gradient for some views only equal those of one pass, and cost no gradient elsewhere."""

from pathlib import Path

import pytest
import torch
from core_world import LORA, encoded, make_backbone, make_pairs

from medvlm_dpo.backbones.llava import LlavaBackbone
from medvlm_dpo.data.collate import collate
from medvlm_dpo.logps import served_tensors
from medvlm_dpo.reference import policy_values, training_values
from medvlm_dpo.vocab import TENSOR_NAMES, Batch

VIEWS = ("chosen", "rejected", "unmatched")
NAMES = [TENSOR_NAMES[f"policy_{view}_logps"] for view in VIEWS]


@pytest.fixture
def world(untrained_model: Path) -> tuple[LlavaBackbone, Batch]:
    backbone = make_backbone(untrained_model)
    backbone.module.double()
    backbone.add_adapter(LORA, seed=0)
    batch = collate(
        encoded(make_pairs(3), backbone), VIEWS, global_positions=range(3), pixels=lambda image: backbone.pixels(image).double()
    )
    return backbone, batch


@pytest.mark.parametrize("live", [{"chosen", "rejected"}, {"unmatched"}, {"rejected"}, set(VIEWS)])
def test_values_equal_one_pass_and_idle_views_carry_no_gradient(world: tuple[LlavaBackbone, Batch], live: set[str]) -> None:
    backbone, batch = world
    whole = served_tensors(NAMES, batch, {"policy": policy_values(backbone, batch)})
    split = served_tensors(NAMES, batch, {"policy": training_values(backbone, batch, live)})
    weight = next(iter(backbone.trainable().values()))
    for view, name in zip(VIEWS, map(str, NAMES), strict=True):
        torch.testing.assert_close(split[name], whole[name], rtol=1e-12, atol=1e-12)
        (expected,) = torch.autograd.grad(whole[name].sum(), [weight], retain_graph=True)
        (gradient,) = torch.autograd.grad(split[name].sum(), [weight], retain_graph=True, allow_unused=True)
        if view in live:
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
        else:
            assert gradient is None or not gradient.any()


def test_a_batch_without_idle_answers_takes_one_pass(world: tuple[LlavaBackbone, Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, batch = world
    calls: list[int] = []
    original = LlavaBackbone.hidden_states

    def counted(self: LlavaBackbone, rows: object) -> torch.Tensor:
        calls.append(1)
        return original(self, rows)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(LlavaBackbone, "hidden_states", counted)
    training_values(backbone, batch, set(VIEWS))
    assert len(calls) == 1
    training_values(backbone, batch, {"chosen"})
    assert len(calls) == 3
