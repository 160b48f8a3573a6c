"""What the cells of a sweep share, computed once before they start: the starting model's values on every sequence that some cell asks for.

A sweep of any losses, strengths and seeds on one data set makes one reference pass; its cells read. Killing it loses one unfinished block.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.cache.store import BlockStore, StoreError
from medvlm_dpo.caches import reference_store, use_pictures
from medvlm_dpo.callbacks import STEP0_TOLERANCE
from medvlm_dpo.check import weights_content
from medvlm_dpo.config.instantiate import call_if_any, call_target
from medvlm_dpo.data.content import read_source
from medvlm_dpo.data.datamodule import StepMaker
from medvlm_dpo.data.encoding import EncodedExample
from medvlm_dpo.data.manifest import Manifest
from medvlm_dpo.errors import InputError
from medvlm_dpo.files import sha256_of_json
from medvlm_dpo.grading import frozen_evaluations
from medvlm_dpo.objectives.demand import Demand
from medvlm_dpo.objectives.diagnostics import validation_diagnostics
from medvlm_dpo.objectives.terms import build_objective
from medvlm_dpo.preparation import PreparedData, encode_split, prepare_data
from medvlm_dpo.process import device, settle_torch
from medvlm_dpo.progress import ProgressLine
from medvlm_dpo.reference import AbstractReference, StartingReference
from medvlm_dpo.reference_cache import Column, columns_of, dtype_of, views_of
from medvlm_dpo.reference_fill import ReferenceFill, Work
from medvlm_dpo.results.ledger import read_cell
from medvlm_dpo.settings import CacheSettings, TrainerSettings
from medvlm_dpo.steps import layout_of_run, step_maker, training_steps
from medvlm_dpo.vision_cache import VisionCache
from medvlm_dpo.vocab import CORRUPT_VIEWS, Batch, ImageSource


def precompute(folders: Sequence[str], threads: int) -> None:
    """Fills what cells of a sweep will ask for and the cache does not hold; says what it did.

    Args:
        folders: of frozen cells that are about to be trained.
        threads: CPU threads.

    Raises:
        InputError: input changed since the cells were frozen, or stored values disagree with the model and cannot be replaced.
    """
    settle_torch(threads)
    starts: dict[str, list[Mapping[str, Any]]] = {}
    for folder in folders:
        cell = read_cell(Path(folder)).cell
        parts = [cell["content"]["model"], cell["config"]["model"], cell["config"]["cache"], cell["config"]["trainer"]["layout"]]
        starts.setdefault(sha256_of_json(parts), []).append(cell)
    for cells in starts.values():
        settings: CacheSettings = call_target(cells[0]["config"]["cache"])
        if settings.reference or settings.pictures:
            _fill_caches(cells, settings, _asked_pictures(folders, cells[0]["config"]))


@dataclass(frozen=True)
class _Asking:
    """One cell and what it asks of the starting model, by split."""

    config: Mapping[str, Any]
    demand: Demand
    settings: TrainerSettings
    columns: Mapping[str, frozenset[Column]]

    def visited(self, split: str, examples: Sequence[EncodedExample], maker: StepMaker) -> frozenset[int]:
        """Which examples of a split the cell will see."""
        if split != "train":
            return frozenset(range(len(examples)))
        own = replace(maker, seed=self.config["seed"], batch_size=self.settings.batch_size)
        return training_steps(examples, own, self.settings).visited()


def _asking(cell: Mapping[str, Any]) -> _Asking:
    config = cell["config"]
    settings: TrainerSettings = call_target(config["trainer"])
    demand = build_objective(config["loss"], batch_size=settings.batch_size).demand
    reference: AbstractReference = call_if_any(config["reference"]) or StartingReference()
    trained = columns_of(demand.tensors) if reference.is_start else frozenset[Column]()
    diagnosed = columns_of(validation_diagnostics(demand).demand.tensors)
    return _Asking(config, demand, settings, {"train": trained, "validation": trained | diagnosed})


def _fill_caches(cells: Sequence[Mapping[str, Any]], settings: CacheSettings, asked: Sequence[ImageSource]) -> None:
    """All cells that start from one model; `asked` are pictures of questions."""
    asking = [_asking(cell) for cell in cells]
    backbone: AbstractBackbone = call_target(cells[0]["config"]["model"])
    if weights_content(backbone, _manifest(asking[0].config)) != cells[0]["content"]["model"]:
        raise InputError("model: its files changed after the cells were frozen. Give the command again: changed input is another cell.")
    maker = step_maker(backbone, layout_of_run(backbone, asking[0].settings), asking[0].settings, frozenset(), seed=0)
    work = [part for same in _by_node(asking, "data") for part in _work(same, _prepared(same[0].config, backbone), backbone, maker)]
    backbone.load()
    backbone.module.to(device())
    if (pictures := use_pictures(settings, backbone)) is not None:
        _fill_pictures(pictures, [*asked, *(image for part in work for image in part.pictures())])

    def collated(examples: Sequence[EncodedExample], views: frozenset[str]) -> Sequence[Batch]:
        return replace(maker, views=views).make(0, examples).batches

    fill = ReferenceFill(backbone, collated, work)
    store = reference_store(settings, backbone, weights=cells[0]["content"]["model"], layout=maker.layout.name)
    if store is not None:
        _refuse_foreign(fill, store, dtype_of(backbone), settings)
        _fill(fill, store)


def _fill_pictures(cache: VisionCache, pictures: Sequence[ImageSource]) -> None:
    started, line = time.monotonic(), ProgressLine(done=0, total=len({image.content_hash() for image in pictures}))
    note = cache.fill(pictures, lambda done, _: line.show(done))
    print(f"note: {note}" if note is not None else f"pictures: there after {time.monotonic() - started:.1f} s", flush=True)


def _asked_pictures(folders: Sequence[str], config: Mapping[str, Any]) -> list[ImageSource]:
    """Pictures of the questions that cells will answer."""
    evaluations = {item.folder.name: item for folder in folders for item in frozen_evaluations(Path(folder))}
    manifest = _manifest(config)
    reports = [read_source(evaluation.task().source, manifest) for evaluation in evaluations.values()]
    return [question.image for report in reports for question in report.questions]


def _fill(fill: ReferenceFill, store: BlockStore) -> None:
    missing = fill.missing(store)
    if not missing:
        print("reference values: all there", flush=True)
        return
    print(f"reference values: {missing} to compute, once for all cells", flush=True)
    started, line = time.monotonic(), ProgressLine(done=0, total=missing)
    try:
        fill.fill(store, lambda done, total: line.show(done - (total - missing)))
    except StoreError as error:
        print(f"note: reference values: {error}; what is missing is computed at every step", flush=True)
    else:
        print(f"reference values: there after {time.monotonic() - started:.1f} s", flush=True)


def _refuse_foreign(fill: ReferenceFill, store: BlockStore, dtype: torch.dtype, settings: CacheSettings) -> None:
    """Computes a few stored arrays again.

    Raises:
        InputError: they are not what this model gives.
    """
    allowed, found = STEP0_TOLERANCE.get(dtype, 1e-4), fill.difference(store)
    if not found <= allowed:
        raise InputError(
            f"cache: stored reference values in {settings.folder} lie {found:.3g} from what this model gives here (allowed {allowed:g}): "
            "they come from another computation. Remove its subfolder reference, and they are computed again; or use "
            "cache.folder=ANOTHER, or cache=none"
        )


def _prepared(config: Mapping[str, Any], backbone: AbstractBackbone) -> PreparedData:
    return prepare_data(call_target(config["data"]), backbone, _manifest(config), on_bad_record=config["data"]["on_bad_record"])


def _manifest(config: Mapping[str, Any]) -> Manifest:
    return Manifest(Path(config["paths"]["output_dir"]) / "manifest.json")


def _by_node(asking: Sequence[_Asking], group: str) -> list[list[_Asking]]:
    same: dict[str, list[_Asking]] = {}
    for cell in asking:
        same.setdefault(sha256_of_json(cell.config[group]), []).append(cell)
    return list(same.values())


def _work(asking: Sequence[_Asking], data: PreparedData, backbone: AbstractBackbone, maker: StepMaker) -> list[Work]:
    """What cells of one data set ask for: on the clean pictures for all of them together, then for each corruption."""
    work = _of_corruption(asking, data, backbone, maker, None)
    for same in _by_node(asking, "corruption"):
        if (node := same[0].config["corruption"]) is not None:
            work += _of_corruption(same, data, backbone, maker, node)
    return work


def _of_corruption(
    asking: Sequence[_Asking], data: PreparedData, backbone: AbstractBackbone, maker: StepMaker, node: Mapping[str, Any] | None
) -> list[Work]:
    demand = Demand()
    for cell in asking:
        demand |= cell.demand
    work: list[Work] = []
    for split, examples in data.examples.items():
        columns = frozenset(column for cell in asking for column in cell.columns[split] if _reads_corrupted(column) == (node is not None))
        if examples:
            encoded = encode_split(examples, demand, backbone, call_if_any(node) if node is not None else None)
            seen = frozenset[int]().union(*(cell.visited(split, encoded, maker) for cell in asking))
            work.append(Work(tuple(encoded[place] for place in sorted(seen)), columns))
    return work


def _reads_corrupted(column: Column) -> bool:
    return bool(set(CORRUPT_VIEWS) & set(views_of(column)))
