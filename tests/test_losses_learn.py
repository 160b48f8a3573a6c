"""Every loss of the catalogue trains: on a fixed batch, statistics frozen, it falls within 20 steps on a built-in model."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from core_world import SETTINGS, collated
from torch import Tensor

from medvlm_dpo.backbones.adapter import LoraSettings
from medvlm_dpo.backbones.llava import LlavaBackbone
from medvlm_dpo.config.catalogue import catalogue, conf_folder, loss_names
from medvlm_dpo.config.instantiate import call_target
from medvlm_dpo.data.corruption.base import corrupted_image
from medvlm_dpo.data.encoding import EncodedExample, encode_examples
from medvlm_dpo.data.partners import unmatched_partners
from medvlm_dpo.data.phantom.source import PhantomPairs
from medvlm_dpo.logps import served_tensors
from medvlm_dpo.objectives.cards import card_of
from medvlm_dpo.objectives.terms import Objective, build_objective, weighted_loss
from medvlm_dpo.reference import AbstractReference, StartingReference
from medvlm_dpo.scoring import policy_values
from medvlm_dpo.steps import layout_of_run
from medvlm_dpo.training import CellFiles, train
from medvlm_dpo.vocab import Batch

NUM_PAIRS, NUM_STEPS = 16, 20


def group(name: str, choice: str) -> dict[str, Any]:
    """A yaml of conf/ without interpolations."""
    return yaml.safe_load((conf_folder() / name / f"{choice}.yaml").read_text(encoding="utf-8"))


class World:
    """A built-in model, the loss with its own corruption and reference, and one batch that is the whole training set."""

    def __init__(self, loss: str) -> None:
        composed = catalogue()[loss]
        self.objective: Objective = build_objective(composed.node, batch_size=NUM_PAIRS)
        self.reference: AbstractReference = call_target(group("reference", composed.reference))
        self.backbone: LlavaBackbone = call_target(group("model", "phantom_llava"))
        self.backbone.load()
        source = PhantomPairs(
            data_class="public",
            num_pairs=NUM_PAIRS,
            num_validation_pairs=0,
            own_wrong_fraction=0.25,
            starting_model="builtin:phantom_llava",
        )
        pairs = source.read().examples["train"]
        corruption = call_target(group("corruption", composed.corruption))
        self.examples: tuple[EncodedExample, ...] = encode_examples(
            pairs,
            unmatched_partners(pairs),
            self.backbone.encoder,
            corrupted=partial(corrupted_image, corruption),
            with_changes=True,
        )

    def train(self, folder: Path) -> None:
        settings = replace(SETTINGS, batch_size=NUM_PAIRS, max_steps=NUM_STEPS, learning_rate=4e-4, lr_warmup_fraction=0.1)
        files = CellFiles(folder / "checkpoint", folder / "metrics.jsonl", folder / "adapter")
        splits: dict[str, tuple[EncodedExample, ...]] = {"train": self.examples, "validation": ()}
        lora = {key: value for key, value in group("adapter", "lora").items() if not key.startswith("_")}
        adapter = LoraSettings(**lora)
        train(
            self.backbone,
            self.objective,
            self.reference,
            splits,
            start=StartingReference(),
            layout=layout_of_run(self.backbone, settings),
            adapter=adapter,
            settings=settings,
            seed=0,
            files=files,
        )

    @torch.no_grad()
    def served(self, *, start: bool) -> tuple[dict[str, Tensor], Batch]:
        """Every tensor the loss asks for, of the start or of the trained policy; detached ones apart, so that they can be held."""
        batch = collated(self.examples, sorted(self.objective.demand.views), self.backbone.pictures)
        demand = self.objective.demand
        names = demand.tensors
        reference = StartingReference().values(self.backbone, batch, names) if demand.needs_reference else {}
        with self.backbone.adapter_disabled() if start else nullcontext():
            policy = policy_values(self.backbone, batch, names, reference)
        return served_tensors(names, batch, {"policy": policy, "reference": reference}), batch

    def losses(self, *, hold_detached: bool) -> tuple[float, float]:
        """The mean loss of the batch before and after training, with the statistics, and perhaps the detached tensors, of the start."""
        before, batch = self.served(start=True)
        after, _ = self.served(start=False)
        demand = self.objective.demand
        statistics, _ = self.objective.estimate({str(name): before[str(name)] for name in demand.estimator_tensors}, batch.facts, {})
        if hold_detached:
            after |= {name: value for name, value in before.items() if name.startswith("detached_")}
        found = [self.objective.evaluate(tensors, batch.facts, statistics, batch.global_positions) for tensors in (before, after)]
        start, end = (float(weighted_loss(outputs).mean()) for outputs in found)
        return start, end


@pytest.mark.slow
@pytest.mark.parametrize("loss", loss_names())
def test_the_loss_of_a_fixed_batch_falls(loss: str, tmp_path: Path) -> None:
    """Where the card says why it need not, it falls once the tensors without gradient are held too."""
    world = World(loss)
    world.train(tmp_path)
    card = card_of(catalogue()[loss].node)
    assert card is not None
    before, after = world.losses(hold_detached=bool(card.need_not_fall))
    assert after < before
