"""What the cells of a sweep share is computed once: counted over whole sweeps."""

import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from core_world import loss_node, make_config, make_pairs, make_questions

from launch.freeze import freeze_sweep
from launch.plan import plan_cells
from medvlm_dpo.backbones import llava
from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.cache.blocks import Array
from medvlm_dpo.cache.store import BlockStore
from medvlm_dpo.check import check_cells
from medvlm_dpo.errors import InputError
from medvlm_dpo.files import read_json
from medvlm_dpo.logps import TokenValues
from medvlm_dpo.precompute import precompute
from medvlm_dpo.reference import StartingReference
from medvlm_dpo.reference_fill import ReferenceFill
from medvlm_dpo.runner import run_cell
from medvlm_dpo.vocab import Batch, TensorName

EIGHT = ("dpo", "ipo", "kto", "simpo", "sft", "tdpo1", "tdpo2", "dpop")


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(mode=False)


@dataclass
class Passes:
    """Sequences that the starting model has scored, each time by what made it: `fill`, `check` or a cell."""

    by: Counter[str] = field(default_factory=Counter)
    filled: Counter[str] = field(default_factory=Counter)
    doing: str = "cell"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    counted = Passes()
    values, difference, fill = StartingReference.values, ReferenceFill.difference, ReferenceFill.fill

    def counting(self: StartingReference, backbone: AbstractBackbone, batch: Batch, names: Collection[TensorName]) -> TokenValues:
        counted.by[counted.doing] += batch.rows.num_answers
        if counted.doing == "fill":
            counted.filled.update(batch.answer_keys)
        return values(self, backbone, batch, names)

    def named(what: str, function: Any) -> Any:
        def during(*arguments: Any) -> Any:
            counted.doing = what
            try:
                return function(*arguments)
            finally:
                counted.doing = "cell"

        return during

    monkeypatch.setattr(StartingReference, "values", counting)
    monkeypatch.setattr(ReferenceFill, "difference", named("check", difference))
    monkeypatch.setattr(ReferenceFill, "fill", named("fill", fill))
    return counted


def freeze(model: Path, output_dir: Path, losses: Collection[str], seeds: Collection[int], **changes: Any) -> list[str]:
    """Folders of the training cells of a grid."""
    choices = {"model": "tiny", "data": "phantom", "evaluation": "phantom", "decoding": "greedy"}
    configs = [
        make_config(model, output_dir, loss=loss_node(loss), seed=seed, choices={**choices, "loss": loss}, **changes)
        for loss in losses
        for seed in seeds
    ]
    planned = plan_cells(configs, check_cells(configs, str(output_dir / "manifest.json"), full=False))
    freeze_sweep(planned, output_dir, "test", ["test"])
    return [str(output_dir / "cells" / cell.id) for cell in planned if cell.kind == "train"]


def test_cells_of_a_sweep_share_one_pass(untrained_model: Path, tmp_path: Path, passes: Passes, capsys: pytest.CaptureFixture[str]) -> None:
    folders = freeze(untrained_model, tmp_path, ("dpo", "tdpo1", "sft"), (0,))
    precompute(folders, 1)

    assert passes.by["fill"] == 2 * (8 + 4), "both answers of 8 training and 4 validation pairs"
    assert set(passes.filled.values()) == {1}, "none twice, though one cell asks for hidden states and the other for log-probabilities"
    for folder in folders:
        run_cell(folder)
    assert capsys.readouterr().out.count("policy and start differ by at most") == 3, "checked by what validation has scored anyway"
    assert passes.by["cell"] == 0, "later cells make no reference pass at all"
    assert passes.by["check"] == 0, "nothing was there that had to be checked"

    precompute(freeze(untrained_model, tmp_path, ("ipo",), (1,)), 1)
    assert passes.by["fill"] == 2 * (8 + 4), "another loss, another seed: the same sequences"
    assert 0 < passes.by["check"] <= 8


@pytest.mark.slow
def test_8_losses_x_2_seeds_make_one_reference_pass(untrained_model: Path, tmp_path: Path, passes: Passes) -> None:
    folders = freeze(untrained_model, tmp_path, EIGHT, (0, 1))
    assert len(folders) == 16
    precompute(folders, 1)
    unmatched = 8 + 4  # kto reads one more answer on every prompt
    assert passes.by["fill"] == 2 * (8 + 4) + unmatched
    assert set(passes.filled.values()) == {1}
    for folder in folders:
        assert run_cell(folder) == 0
    assert passes.by["cell"] == 0


def test_results_do_not_depend_on_the_cache(untrained_model: Path, tmp_path: Path) -> None:
    losses: dict[bool, list[Any]] = {}
    for cached in (True, False):
        folders = freeze(untrained_model, tmp_path / str(cached), ("tdpo1", "kto"), (0,), cache={"reference": cached})
        precompute(folders, 1)
        losses[cached] = [metrics_after(folder) for folder in folders]
        assert (tmp_path / str(cached) / "cache" / "reference").exists() == cached
    for with_cache, without in zip(losses[True], losses[False], strict=True):
        assert with_cache == {name: pytest.approx(value, rel=1e-4, abs=1e-5) for name, value in without.items()}


def metrics_after(folder: str) -> dict[str, float]:
    """Of a cell that is run, without what a clock decides."""
    run_cell(folder)
    metrics = read_json(Path(folder) / "result.json")["metrics"]
    return {name: value for name, value in metrics.items() if not name.endswith("per_second")}


def test_each_corruption_pays_for_its_own_pictures_only(untrained_model: Path, tmp_path: Path, passes: Passes) -> None:
    precompute(freeze(untrained_model, tmp_path, ("dpo",), (0,)), 1)
    clean = passes.by["fill"]
    precompute(freeze(untrained_model, tmp_path, ("mdpo",), (0,)), 1)
    assert passes.by["fill"] - clean == 8 + 4, "chosen answers on the corrupted picture"
    other = {"_target_": "medvlm_dpo.data.corruption.plain.Blank", "level": 0}
    precompute(freeze(untrained_model, tmp_path, ("mdpo",), (0,), corruption=other), 1)
    assert passes.by["fill"] - clean == 2 * (8 + 4)


def test_only_examples_that_some_cell_sees(untrained_model: Path, tmp_path: Path, passes: Passes) -> None:
    precompute(freeze(untrained_model, tmp_path, ("dpo",), (0,), trainer={"max_steps": 1}), 1)
    assert passes.by["fill"] == 2 * (4 + 4), "one step of 4 pairs, and 4 validation pairs"


def test_each_cell_by_its_own_batch_size(untrained_model: Path, tmp_path: Path, passes: Passes) -> None:
    folders = [
        *freeze(untrained_model, tmp_path, ("dpo",), (0,), trainer={"max_steps": 1, "batch_size": 2}),
        *freeze(untrained_model, tmp_path, ("ipo",), (0,), trainer={"max_steps": 1, "batch_size": 8}),
    ]
    precompute(folders, 1)
    assert passes.by["fill"] == 2 * (8 + 4), "the second cell sees all 8 pairs in its one step"


def test_weights_that_changed_since_are_refused(untrained_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(untrained_model, tmp_path / "model"))
    folders = freeze(model, tmp_path, ("dpo",), (0,))
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    with pytest.raises(InputError, match="model: its files changed after the cells were frozen"):
        precompute(folders, 1)
    assert not (tmp_path / "cache").exists(), "nothing is kept under the name of other weights"


def test_a_moving_reference_asks_for_validation_only(untrained_model: Path, tmp_path: Path, passes: Passes) -> None:
    moving = {"_target_": "medvlm_dpo.reference.MovingReference", "mix": 0.6, "every_steps": 2}
    (folder,) = freeze(untrained_model, tmp_path, ("dpo",), (0,), reference=moving)
    precompute([folder], 1)
    assert passes.by["fill"] == 2 * 4
    run_cell(folder)
    assert passes.by["cell"] == 0, "its own pass is another model's"


def test_values_of_another_computation_are_refused(untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = freeze(untrained_model, tmp_path, ("dpo",), (0,))
    right = ReferenceFill.compute

    def wrong(self: ReferenceFill, keys: Any) -> dict[str, Array]:
        return {key: array - 0.5 for key, array in right(self, keys).items()}

    monkeypatch.setattr(ReferenceFill, "compute", wrong)
    precompute(folders, 1)
    monkeypatch.setattr(ReferenceFill, "compute", right)
    with pytest.raises(InputError, match=r"stored reference values in .* lie 0\.5 from what this model gives here .* cache=none"):
        precompute(folders, 1)


def test_a_limit_that_is_reached_stops_no_cell(
    untrained_model: Path, tmp_path: Path, passes: Passes, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder,) = freeze(untrained_model, tmp_path, ("dpo",), (0,), cache={"limit_gb": 1e-9})
    precompute([folder], 1)
    assert "what is missing is computed at every step" in capsys.readouterr().out
    assert run_cell(folder) == 0
    assert passes.by["cell"] > 0


def test_a_cache_that_cannot_be_written_is_read(
    untrained_model: Path, tmp_path: Path, passes: Passes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = {"folder": str(tmp_path / "shared")}
    precompute(freeze(untrained_model, tmp_path / "owner", ("dpo",), (0,), cache=shared), 1)
    monkeypatch.setattr(BlockStore, "_prepare", lambda *_: False)  # a folder of others; we may read it
    (folder,) = freeze(untrained_model, tmp_path / "guest", ("ipo",), (0,), cache=shared)
    precompute([folder], 1)
    assert "all there" in capsys.readouterr().out
    assert run_cell(folder) == 0
    assert passes.by["cell"] == 0
    (other,) = freeze(untrained_model, tmp_path / "guest", ("tdpo1",), (0,), cache=shared)
    precompute([other], 1)
    assert "cannot be written and lacks" in capsys.readouterr().out
    assert run_cell(other) == 0


@pytest.mark.parametrize("kept", [True, False])
def test_pictures_are_encoded_once_for_training_and_questions(
    untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    encoded: list[int] = []
    tower = llava.tower_features

    def counting(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        encoded.append(len(pixel_values))
        return tower(model, pixel_values)

    monkeypatch.setattr(llava, "tower_features", counting)
    folders = freeze(untrained_model, tmp_path, ("dpo", "mdpo"), (0,), cache={"pictures": kept})
    precompute(folders, 1)
    before = len(encoded)
    for folder in folders:
        run_cell(folder)
    if kept:
        images = {
            example.image.content_hash() for split in ("train", "validation") for example in make_pairs(8 if split == "train" else 4, split)
        }
        questions = {question.image.content_hash() for question in make_questions(6)}
        assert sum(encoded[:before]) == len(images | questions) + 8 + 4, "and a corrupted picture for every pair of mdpo"
    assert (len(encoded) == before) == kept, "later cells and their evaluations run the tower only where nothing is kept"
