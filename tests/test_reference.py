"""The moving reference: a mixture of snapshots is exactly the mixture of the weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from core_world import LORA, adapter_of, collated, encoded, make_backbone, make_pairs, run_training
from peft.tuners.lora import LoraLayer
from torch import Tensor

from medvlm_dpo.backbones.llava import LlavaBackbone
from medvlm_dpo.errors import InputError
from medvlm_dpo.reference import MovingReference, StartingReference
from medvlm_dpo.vocab import TENSOR_NAMES, Batch

NAMES = [TENSOR_NAMES["reference_chosen_logps"], TENSOR_NAMES["reference_rejected_top_wrong_logps"]]


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.backbone = make_backbone(folder)
        self.backbone.module.double()
        self.backbone.add_adapter(LORA, seed=0)
        self.batch: Batch = collated(
            encoded(make_pairs(2), self.backbone), ("chosen", "rejected"), lambda images: self.backbone.pictures(images).double()
        )
        self.generator = torch.Generator().manual_seed(3)

    def drift(self) -> dict[str, Tensor]:
        """Changes the adapter; gives the update of every layer's weight as it is now."""
        with torch.no_grad():
            for weight in self.backbone.trainable().values():
                weight.add_(0.2 * torch.randn(weight.shape, generator=self.generator, dtype=torch.float64))
        layers: dict[str, Any] = {name: part for name, part in self.backbone.module.named_modules() if isinstance(part, LoraLayer)}
        return {
            name: (layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]).detach()
            for name, layer in layers.items()
        }

    def merged_values(self, update: dict[str, Tensor]) -> Any:
        """What a model with these updates added to its weights gives."""
        model: Any = make_backbone(self.folder)
        model.module.double()
        model.add_adapter(LORA, seed=0)
        with torch.no_grad():
            for name, weights in update.items():
                model.module.get_submodule(name).get_base_layer().weight.add_(weights)
        return StartingReference().values(model, self.batch, NAMES)


def assert_same(values: Any, expected: Any) -> None:
    assert values.keys() == expected.keys()
    for base, value in expected.items():
        torch.testing.assert_close(values[base], value, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mix", [0.6, 1.0])
def test_two_updates_are_the_mixture_of_the_weights(untrained_model: Path, mix: float) -> None:
    world = World(untrained_model)
    reference = MovingReference(mix=mix, every_steps=2)
    start = StartingReference().values(world.backbone, world.batch, NAMES)
    assert_same(reference.values(world.backbone, world.batch, NAMES), start)

    first = world.drift()
    reference.after_step(world.backbone, 1)  # not due
    assert_same(reference.values(world.backbone, world.batch, NAMES), start)
    reference.after_step(world.backbone, 2)
    world.drift()
    assert_same(reference.values(world.backbone, world.batch, NAMES), world.merged_values({n: mix * u for n, u in first.items()}))

    second = world.drift()
    reference.after_step(world.backbone, 4)
    mixed = {name: mix * second[name] + (1 - mix) * mix * first[name] for name in first}
    expected = world.merged_values(mixed)
    assert_same(reference.values(world.backbone, world.batch, NAMES), expected)
    assert not torch.allclose(expected["logps"], start["logps"])

    again = MovingReference(mix=mix, every_steps=2)
    again.restore(reference.state())
    assert_same(again.values(world.backbone, world.batch, NAMES), expected)


def test_the_policy_is_untouched_by_a_pass_of_the_reference(untrained_model: Path) -> None:
    world = World(untrained_model)
    reference = MovingReference(mix=0.6, every_steps=1)
    world.drift()
    reference.after_step(world.backbone, 1)
    names = [TENSOR_NAMES["policy_chosen_logps"]]
    before = policy(world.backbone, world.batch, names)
    reference.values(world.backbone, world.batch, NAMES)
    torch.testing.assert_close(policy(world.backbone, world.batch, names), before, rtol=0, atol=0)
    assert all(weight.requires_grad for weight in world.backbone.trainable().values())


def policy(backbone: LlavaBackbone, batch: Batch, names: Any) -> Tensor:
    from medvlm_dpo.scoring import policy_values

    return policy_values(backbone, batch, names)["logps"].detach()


def test_wrong_settings_are_refused_together() -> None:
    with pytest.raises(InputError) as caught:
        MovingReference(mix=0.0, every_steps=0)
    assert [problem.split()[0] for problem in caught.value.problems] == ["reference.mix", "reference.every_steps"]


def test_a_run_with_a_moving_reference_resumes_bit_equal(untrained_model: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"learning_rate": 1e-2, "checkpoint_every_steps": 3}
    run_training(untrained_model, tmp_path / "whole", reference=MovingReference(mix=0.6, every_steps=2), max_steps=6, **settings)
    stopped = tmp_path / "stopped"
    with pytest.raises(RuntimeError, match="power cut"):
        run_training(untrained_model, stopped, reference=PowerCut(mix=0.6, every_steps=2), max_steps=6, **settings)
    resumed = run_training(untrained_model, stopped, reference=MovingReference(mix=0.6, every_steps=2), max_steps=6, **settings)

    assert resumed.training["resumed_after_step"] == 3
    for name, tensor in adapter_of(tmp_path / "whole").items():
        assert torch.equal(tensor, adapter_of(stopped)[name]), name
    still = tmp_path / "still"
    run_training(untrained_model, still, max_steps=6, **settings)
    assert any(not torch.equal(tensor, adapter_of(still)[name]) for name, tensor in adapter_of(tmp_path / "whole").items())


class PowerCut(MovingReference):
    """Ends the run in its fifth step."""

    def after_step(self, backbone: Any, step: int) -> None:
        if step == 5:
            raise RuntimeError("power cut")
        super().after_step(backbone, step)
