"""A cell of the benchmark: what training it and filling its caches beforehand both need."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from medvlm_dpo.backbones.llava import LlavaBackbone
from medvlm_dpo.cache.store import BlockStore
from medvlm_dpo.caches import reference_store, use_pictures
from medvlm_dpo.config.catalogue import compose_loss, conf_folder
from medvlm_dpo.config.instantiate import call_if_any
from medvlm_dpo.data.encoding import EncodedExample
from medvlm_dpo.data.segments import Layout, PackedLayout
from medvlm_dpo.objectives.terms import Objective, build_objective
from medvlm_dpo.preparation import encode_split
from medvlm_dpo.settings import CacheSettings, TrainerSettings
from medvlm_dpo.steps import layout_of_run
from medvlm_dpo.vision_cache import VisionCache
from tests.benchmarks.shape import Shape
from tests.benchmarks.work import NeededWork
from tests.benchmarks.world import backbone, make_pairs, read_shape, trainer_settings


@dataclass(frozen=True)
class Cell:
    """One loss on the benchmark's pairs, the model loaded."""

    shape: Shape
    settings: TrainerSettings
    model: LlavaBackbone
    objective: Objective
    examples: tuple[EncodedExample, ...]
    layout: Layout

    def needed_work(self) -> NeededWork:
        """What a mean step has to compute, whatever the layout of this cell is: answers share picture and question."""
        packed, views = PackedLayout(self.model.encoder.image_token_id), sorted(self.objective.demand.views)
        sequences = [scored for example in self.examples for view in views if (scored := example.sequence(view)) is not None]
        share = self.shape.batch_size / len(self.examples)
        answers = sum(len(scored.answer) for scored in sequences)
        return NeededWork(self.shape, tokens=share * packed.num_tokens(sequences), answer_tokens=share * answers)


def make_cell(folder: Path, *, loss: str = "dpo", changes: Mapping[str, Any] | None = None, **settings: Any) -> Cell:
    """Loads the model and encodes the pairs.

    Args:
        folder: written by `world.write_model`.
        loss: a name of the catalogue, with its own corruption.
        changes: of the shape the folder was written with, which the weights do not depend on.
        settings: of the trainer, in place of the shape's.
    """
    shape = replace(read_shape(folder), **(changes or {}))
    chosen = trainer_settings(shape, **settings)
    model = backbone(folder)
    model.load()
    composed = compose_loss([f"loss={loss}"])
    objective = build_objective(composed.node, batch_size=chosen.batch_size)
    node = yaml.safe_load((conf_folder() / "corruption" / f"{composed.corruption}.yaml").read_text(encoding="utf-8"))
    examples = encode_split(make_pairs(shape, model.encoder), objective.demand, model, call_if_any(node))
    return Cell(shape, chosen, model, objective, examples, layout_of_run(model, chosen))


def open_caches(cell: Cell, folder: Path) -> tuple[BlockStore, VisionCache]:
    """The caches of a default configuration, in a folder of the benchmark's; from now on the model reads features of pictures there."""
    settings = CacheSettings(folder=str(folder), reference=True, pictures=True, limit_gb=None)
    pictures = use_pictures(settings, cell.model)
    store = reference_store(settings, cell.model, weights="of the benchmark", layout=cell.layout.name)
    if pictures is None or store is None:
        raise RuntimeError("a frozen tower and a fixed reference must be kept")
    return store, pictures
