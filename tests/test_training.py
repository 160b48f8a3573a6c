"""Training: every loss, whatever the micro-batches, with its safety checks, its metrics, and resuming as if nothing had happened."""

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from core_world import LORA, adapter_of, make_backbone, make_pairs, metrics_of, run_training
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.backbones.llava import LlavaBackbone
from medvlm_dpo.config.catalogue import loss_names
from medvlm_dpo.errors import TrainingStoppedError
from medvlm_dpo.files import read_json
from medvlm_dpo.logps import TokenValues
from medvlm_dpo.module import PreferenceModule
from medvlm_dpo.reference import StartingReference
from medvlm_dpo.vocab import Batch, Example, TensorName

CHECKPOINT_FILES = ("adapter/adapter_model.safetensors", "state.pt", "progress.json")


class GradientSpy:
    """Keeps the gradients that optimiser steps see."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        self.steps.append(torch.cat([weight.grad.flatten().clone() for weight in weights]))


def train_lines(folder: Path) -> list[dict[str, Any]]:
    return [line for line in metrics_of(folder) if "train/loss" in line]


def changed(folder: Path) -> bool:
    return any(tensor.any() for name, tensor in adapter_of(folder).items() if "lora_B" in name)


# --- every loss ------------------------------------------------------------------------------------------------------


# One for every way of being served: gradient or none, reference or none, each base, statistics with and without state, facts, sums.
KINDS = ("sft_token_mean", "simpo", "dpo", "kto", "alpha_dpo", "beta_dpo", "wpo", "tdpo2", "mdpo", "povid", "v_dpo", "perception", "ddpo")
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in loss_names() if name not in KINDS]


@pytest.mark.parametrize("loss", [*KINDS, *OTHERS])
def test_every_loss_trains(untrained_model: Path, tmp_path: Path, loss: str) -> None:
    cell = run_training(untrained_model, tmp_path, loss, validation=3)

    lines = train_lines(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(math.isfinite(value) for line in metrics_of(tmp_path) for value in line.values())
    assert changed(tmp_path)
    assert cell.training["steps"] == 3
    assert cell.training["examples"] == 12
    assert cell.metrics["train/loss"] == pytest.approx(sum(line["train/loss"] for line in lines) / 3)
    assert cell.metrics["validation/preference_margin"] != 0


def test_loss_falls_on_pairs_seen_again_and_again(untrained_model: Path, tmp_path: Path) -> None:
    run_training(untrained_model, tmp_path, pairs=4, max_steps=12, learning_rate=1e-2)

    losses = [line["train/loss"] for line in train_lines(tmp_path)]
    assert losses[-1] < 0.8 * losses[0]


def test_first_loss_of_dpo_is_ln2(untrained_model: Path, tmp_path: Path) -> None:
    run_training(untrained_model, tmp_path, max_steps=1)

    first = train_lines(tmp_path)[0]
    assert first["train/loss"] == math.log(2)
    assert first["train/reward_margin"] == 0
    assert first["train/reward_accuracy"] == 0.5, "a tie counts one half"
    assert first["train/preference_gain"] == 0.5


@pytest.mark.parametrize(("loss", "asked"), [("sft", 0), ("simpo", 0), ("dpo", 3), ("ipo", 3), ("kto", 3)])
def test_the_reference_is_asked_only_by_losses_that_compare(untrained_model: Path, tmp_path: Path, loss: str, asked: int) -> None:
    class Counted(StartingReference):
        calls = 0

        def values(self, backbone: AbstractBackbone, batch: Batch, names: Collection[TensorName]) -> TokenValues:
            Counted.calls += 1
            return super().values(backbone, batch, names)

    run_training(untrained_model, tmp_path, loss, reference=Counted())

    assert Counted.calls == asked


def test_sft_scores_chosen_answers_only(untrained_model: Path, tmp_path: Path) -> None:
    both = run_training(untrained_model, tmp_path / "dpo", "dpo")
    chosen = run_training(untrained_model, tmp_path / "sft", "sft")

    assert chosen.training["tokens"] < both.training["tokens"], "rejected answers are not read; what both share is read once anyway"


# --- micro-batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_micro_batches_change_nothing_in_float64(untrained_model: Path, tmp_path: Path, loss: str) -> None:
    found: dict[int, GradientSpy] = {}
    for size in (8, 3, 1):
        found[size] = GradientSpy()
        hook = register_optimizer_step_pre_hook(found[size])
        try:
            run_training(untrained_model, tmp_path / str(size), loss, dtype=torch.float64, batch_size=8, micro_batch_size=size, max_steps=2)
        finally:
            hook.remove()

    for size in (3, 1):
        for gradient, whole in zip(found[size].steps, found[8].steps, strict=True):
            assert float((gradient - whole).norm() / whole.norm()) < 1e-9
        for line, same in zip(train_lines(tmp_path / str(size)), train_lines(tmp_path / "8"), strict=True):
            assert line == pytest.approx(same, rel=1e-9, abs=1e-12)
    assert float(found[8].steps[1].norm()) > 1e-6


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_micro_batches_change_float32_adapters_by_rounding_only(untrained_model: Path, tmp_path: Path, loss: str) -> None:
    for size in (8, 2):
        run_training(untrained_model, tmp_path / str(size), loss, batch_size=8, micro_batch_size=size, max_steps=2, learning_rate=1e-4)

    whole = adapter_of(tmp_path / "8")
    for name, tensor in adapter_of(tmp_path / "2").items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_small_token_budget_changes_nothing_in_float64(untrained_model: Path, tmp_path: Path, loss: str) -> None:
    cells = {
        budget: run_training(
            untrained_model, tmp_path / str(budget), loss, dtype=torch.float64, batch_size=8, micro_batch_tokens=budget, max_steps=2
        )
        for budget in (None, 400, 1)
    }

    whole = adapter_of(tmp_path / "None")
    tokens = [cells[budget].training["tokens"] for budget in (None, 400, 1)]
    assert tokens[0] <= tokens[1] <= tokens[2], "examples apart share nothing"
    for budget in (400, 1):
        for line, same in zip(train_lines(tmp_path / str(budget)), train_lines(tmp_path / "None"), strict=True):
            assert line == pytest.approx(same, rel=1e-9, abs=1e-12)
        for name, tensor in adapter_of(tmp_path / str(budget)).items():
            torch.testing.assert_close(tensor, whole[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("loss", ["dpo", "mdpo"])
def test_layouts_differ_by_rounding_only(untrained_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], loss: str) -> None:
    plain, packed = (
        run_training(untrained_model, tmp_path / layout, loss, validation=4, layout=layout, learning_rate=1e-4)
        for layout in ("plain", "auto")
    )

    assert (plain.training["layout"], packed.training["layout"]) == ("plain", "packed")
    assert packed.training["tokens"] < plain.training["tokens"]
    log = capsys.readouterr().out.splitlines()
    assert [line for line in log if line.startswith("layout: ")] == [
        "layout: plain (trainer.layout=plain)", "layout: packed, answers share picture and question",
    ]  # fmt: skip
    for line, same in zip(metrics_of(tmp_path / "auto"), metrics_of(tmp_path / "plain"), strict=True):
        assert line == pytest.approx(same, rel=1e-4, abs=1e-5)


def test_order_by_image_is_said_and_reads_fewer_tokens(
    untrained_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def four_a_picture(number: int, split: str = "train") -> tuple[Example, ...]:
        pairs = make_pairs(number, split)
        return tuple(replace(pair, image=pairs[place // 4].image) for place, pair in enumerate(pairs))

    monkeypatch.setattr("core_world.make_pairs", four_a_picture)
    shuffled, by_image = (
        run_training(untrained_model, tmp_path / order, order=order, pairs=24, batch_size=8) for order in ("shuffled", "image_tree")
    )

    assert (shuffled.training["order"], by_image.training["order"]) == ("shuffled", "image_tree")
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("order: ")] == ["order: shuffled", "order: image_tree"]
    assert by_image.training["examples"] == shuffled.training["examples"] == 24
    assert by_image.training["tokens"] < 0.8 * shuffled.training["tokens"]
    assert changed(tmp_path / "image_tree")


def test_kto_statistic_is_one_number_of_the_global_batch(untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, list[Any]] = {}
    inner = PreferenceModule._estimate

    for size in (8, 3):
        seen[size] = []

        def spied(self: PreferenceModule, served: Any, into: list[Any] = seen[size]) -> Any:
            result: Any = inner(self, served)
            into.append(result[0]["kto/unmatched_kl"].item())
            return result

        monkeypatch.setattr(PreferenceModule, "_estimate", spied)
        run_training(
            untrained_model,
            tmp_path / str(size),
            "kto",
            dtype=torch.float64,
            batch_size=8,
            micro_batch_size=size,
            learning_rate=1e-2,
            max_steps=2,
        )

    assert len(seen[8]) == 2
    assert seen[3] == pytest.approx(seen[8], rel=1e-9)
    assert max(seen[8]) > 0


# --- safety checks ---------------------------------------------------------------------------------------------------


def test_an_adapter_that_is_not_fresh_stops_the_run(untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = LlavaBackbone.add_adapter

    def used(self: LlavaBackbone, settings: Any, *, seed: int) -> None:
        fresh(self, settings, seed=seed)
        with torch.no_grad():
            for name, weight in self.trainable().items():
                weight.add_(0.05 if "lora_B" in name else 0.0)

    monkeypatch.setattr(LlavaBackbone, "add_adapter", used)

    with pytest.raises(TrainingStoppedError, match="step 0: the fresh adapter changes per-token log-probs"):
        run_training(untrained_model, tmp_path)
    assert train_lines(tmp_path) == []


def test_a_start_that_is_not_a_number_stops_the_run(untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, called = StartingReference.values, list[Batch]()

    def wrong_once(self: StartingReference, backbone: AbstractBackbone, batch: Batch, names: Collection[TensorName]) -> TokenValues:
        called.append(batch)
        factor = math.nan if len(called) == 1 else 1.0
        return {base: values * factor for base, values in right(self, backbone, batch, names).items()}

    monkeypatch.setattr(StartingReference, "values", wrong_once)

    with pytest.raises(TrainingStoppedError, match="step 0: the fresh adapter changes per-token log-probs by nan"):
        run_training(untrained_model, tmp_path, "sft", validation=8)
    assert len(called) > 1, "a later micro-batch that agrees does not hide it"


def test_a_tensor_without_gradient_stops_the_run(untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = LlavaBackbone.add_adapter

    def with_idle(self: LlavaBackbone, settings: Any, *, seed: int) -> None:
        fresh(self, settings, seed=seed)
        self.module.register_parameter("idle", torch.nn.Parameter(torch.ones(2)))

    monkeypatch.setattr(LlavaBackbone, "add_adapter", with_idle)

    with pytest.raises(TrainingStoppedError, match=r"1 of \d+ trainable tensors had no gradient \(first: idle\).*did not change"):
        run_training(untrained_model, tmp_path)
    assert len(train_lines(tmp_path)) <= 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_the_run(untrained_model: Path, tmp_path: Path, bad: float) -> None:
    class Broken(StartingReference):
        def values(self, backbone: AbstractBackbone, batch: Batch, names: Collection[TensorName]) -> TokenValues:
            return {"logps": super().values(backbone, batch, names)["logps"] * bad}

    with pytest.raises(TrainingStoppedError, match="step 0: the gradient norm is"):
        run_training(untrained_model, tmp_path, "ipo", reference=Broken())
    assert not (tmp_path / "adapter").exists()


def test_learning_rate_0_is_a_control_that_changes_nothing(untrained_model: Path, tmp_path: Path) -> None:
    run_training(untrained_model, tmp_path, learning_rate=0.0, weight_decay=0.1)

    fresh = make_backbone(untrained_model)
    fresh.add_adapter(LORA, seed=0)
    fresh.save_adapter(tmp_path / "fresh" / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "fresh" / "adapter" / "adapter_model.safetensors"
    ).read_bytes()
    assert {line["train/loss"] for line in train_lines(tmp_path)} == {math.log(2)}


# --- schedule and metrics --------------------------------------------------------------------------------------------


def test_rate_rises_linearly_then_falls_as_a_cosine(untrained_model: Path, tmp_path: Path) -> None:
    run_training(untrained_model, tmp_path, "sft", batch_size=1, max_steps=8, learning_rate=1.0e-3, lr_warmup_fraction=0.25)

    rates = [line["train/learning_rate"] for line in train_lines(tmp_path)]
    cosine = [0.5 * (1 + math.cos(math.pi * place / 6)) for place in range(6)]
    assert rates == pytest.approx([0.5e-3, 1e-3, *(1e-3 * value for value in cosine)], rel=1e-12)


def test_clipping_bounds_the_step_and_0_switches_it_off(untrained_model: Path, tmp_path: Path) -> None:
    norms: dict[float, list[float]] = {}
    for limit in (1e-3, 0.0):
        spy = GradientSpy()
        hook = register_optimizer_step_pre_hook(spy)
        try:
            run_training(untrained_model, tmp_path / str(limit), "sft", max_steps=1, gradient_clip_norm=limit)
        finally:
            hook.remove()
        norms[limit] = [float(spy.steps[0].norm()), train_lines(tmp_path / str(limit))[0]["train/gradient_norm"]]

    assert norms[1e-3][0] == pytest.approx(1e-3, rel=1e-3)
    assert norms[0.0][0] == pytest.approx(norms[0.0][1], rel=1e-5)
    assert norms[0.0][1] == norms[1e-3][1] > 1e-2, "the norm before clipping is what is reported"


def test_metrics_file_has_a_line_per_step_and_validation(untrained_model: Path, tmp_path: Path) -> None:
    run_training(untrained_model, tmp_path, "sft", validation=3, max_steps=4, validate_every_steps=2)

    lines = metrics_of(tmp_path)
    kinds = [(line["step"], "train" if "train/loss" in line else "validation") for line in lines]
    assert kinds == [(0, "validation"), (1, "train"), (2, "train"), (2, "validation"), (3, "train"), (4, "train"), (4, "validation")]
    assert {line["schema_version"] for line in lines} == {1}
    training = {"train/loss", "train/chosen_length", "train/gradient_norm", "train/learning_rate"}
    assert training <= lines[1].keys()
    names = ("loss", "preference_accuracy", "preference_gain", "preference_margin", "chosen_logps_change", "rejected_logps_change")
    assert {f"validation/{name}" for name in names} <= lines[0].keys()
    assert lines[0]["validation/preference_margin"] == 0
    assert lines[0]["validation/preference_gain"] == 0.5
    assert lines[-1]["validation/chosen_logps_change"] != 0


def test_validation_does_not_depend_on_batches(untrained_model: Path, tmp_path: Path) -> None:
    for size, micro in ((4, None), (2, 1)):
        run_training(
            untrained_model, tmp_path / str(size), dtype=torch.float64, validation=4, batch_size=size, micro_batch_size=micro,
            max_steps=1, learning_rate=0.0,
        )  # fmt: skip

    assert metrics_of(tmp_path / "2")[0] == pytest.approx(metrics_of(tmp_path / "4")[0], rel=1e-9)


def test_preferences_per_error_type_add_up_to_the_whole(untrained_model: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"dtype": torch.float64, "validation": 6, "max_steps": 2, "learning_rate": 1e-2}
    cell = run_training(untrained_model, tmp_path / "whole", **settings)
    micro = run_training(untrained_model, tmp_path / "micro", micro_batch_size=1, **settings)

    types = Counter(pair.error_type for pair in make_pairs(6, "validation"))
    found = cell.validation_by_error_type
    assert len(types) > 1
    assert found.keys() == types.keys()
    for name in ("preference_margin", "preference_accuracy", "preference_gain"):
        total = sum(number * found[str(error_type)][name] for error_type, number in types.items())
        assert total / 6 == pytest.approx(cell.metrics[f"validation/{name}"], rel=1e-9)
    for error_type, values in found.items():
        assert micro.validation_by_error_type[error_type] == pytest.approx(values, rel=1e-6)


# --- resuming --------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill."""


def kill_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    inner = PreferenceModule.training_step

    def deadly(self: PreferenceModule, item: Any, batch_idx: int) -> None:
        if item.index == step:
            raise Killed
        inner(self, item, batch_idx)

    monkeypatch.setattr(PreferenceModule, "training_step", deadly)


RUN: dict[str, Any] = {"max_steps": 6, "validation": 3, "validate_every_steps": 2, "checkpoint_every_steps": 1, "learning_rate": 1e-3}


def assert_same_run(folder: Path, other: Path) -> None:
    ours, theirs = (path / "adapter" / "adapter_model.safetensors" for path in (folder, other))
    assert ours.read_bytes() == theirs.read_bytes()
    assert metrics_of(folder) == metrics_of(other)


@pytest.mark.parametrize(("loss", "step"), [("dpo", 1), ("dpo", 4), ("kto", 3)])
def test_a_killed_run_ends_like_one_that_was_not(
    untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, step: int
) -> None:
    straight = run_training(untrained_model, tmp_path / "straight", loss, **RUN)
    with monkeypatch.context() as patch:
        kill_after(patch, step)
        with pytest.raises(Killed):
            run_training(untrained_model, tmp_path / "killed", loss, **RUN)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 5, "train/lo')  # a torn line

    resumed = run_training(untrained_model, tmp_path / "killed", loss, **RUN)

    assert resumed.training["resumed_after_step"] == step
    assert_same_run(tmp_path / "killed", tmp_path / "straight")
    assert resumed.training["tokens"] == straight.training["tokens"]
    assert resumed.metrics.keys() == straight.metrics.keys()
    assert resumed.start_metrics == straight.start_metrics


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {**RUN, "checkpoint_every_steps": 5}
    run_training(untrained_model, tmp_path / "straight", **settings)
    with monkeypatch.context() as patch:
        kill_after(patch, 3)
        with pytest.raises(Killed):
            run_training(untrained_model, tmp_path / "killed", **settings)

    cell = run_training(untrained_model, tmp_path / "killed", **settings)

    assert cell.training["resumed_after_step"] is None
    assert_same_run(tmp_path / "killed", tmp_path / "straight")


def test_a_run_killed_after_its_last_step_only_finishes(untrained_model: Path, tmp_path: Path) -> None:
    run_training(untrained_model, tmp_path / "straight", **RUN)
    run_training(untrained_model, tmp_path / "again", **RUN)

    cell = run_training(untrained_model, tmp_path / "again", **RUN)  # as if killed before its result was written

    assert cell.training["resumed_after_step"] == 6
    assert_same_run(tmp_path / "again", tmp_path / "straight")


@pytest.mark.parametrize(
    ("damaged", "damage"),
    [
        ("adapter/adapter_model.safetensors", "cut"),
        ("adapter/adapter_model.safetensors", "garbage"),
        ("adapter/adapter_model.safetensors", "gone"),
        ("state.pt", "cut"),
        ("state.pt", "garbage"),
        ("state.pt", "empty"),
        ("progress.json", "cut"),
        ("progress.json", "empty"),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str, damage: str
) -> None:
    settings: dict[str, Any] = {"max_steps": 4, "checkpoint_every_steps": 1}
    run_training(untrained_model, tmp_path / "straight", **settings)
    with monkeypatch.context() as patch:
        kill_after(patch, 3)
        with pytest.raises(Killed):
            run_training(untrained_model, tmp_path / "killed", **settings)
    file = tmp_path / "killed" / "checkpoint" / "step-00000003" / damaged
    contents = {"cut": file.read_bytes()[: file.stat().st_size // 2], "garbage": b"garbage " * 100, "empty": b""}
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(contents[damage])

    cell = run_training(untrained_model, tmp_path / "killed", **settings)

    assert cell.training["resumed_after_step"] == 2
    assert_same_run(tmp_path / "killed", tmp_path / "straight")


def test_checkpoints_are_whole_and_only_two_are_kept(untrained_model: Path, tmp_path: Path) -> None:
    run_training(untrained_model, tmp_path, **RUN)

    folders = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    assert folders == ["step-00000005", "step-00000006"]
    for name in CHECKPOINT_FILES:
        assert (tmp_path / "checkpoint" / "step-00000006" / name).is_file()
    assert read_json(tmp_path / "checkpoint" / "step-00000006" / "progress.json")["schema_version"] == 1
    assert Counter(path.suffix for path in (tmp_path / "checkpoint").rglob("*.safetensors")) == {".safetensors": 2}


def test_checkpoints_by_minutes(untrained_model: Path, tmp_path: Path) -> None:
    run_training(untrained_model, tmp_path / "soon", checkpoint_every_min=1e-9)
    run_training(untrained_model, tmp_path / "late", checkpoint_every_min=1e9)

    assert [path.name for path in sorted((tmp_path / "soon" / "checkpoint").iterdir())] == ["step-00000002", "step-00000003"]
    assert not (tmp_path / "late" / "checkpoint").exists()


# --- the same and not the same ---------------------------------------------------------------------------------------


def test_the_same_run_twice_is_bit_equal_and_another_seed_is_not(untrained_model: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_training(untrained_model, tmp_path / name, seed=seed)

    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert train_lines(tmp_path / "a")[0] != train_lines(tmp_path / "c")[0]
    assert any(not torch.equal(tensor, adapter_of(tmp_path / "c")[name]) for name, tensor in adapter_of(tmp_path / "a").items())
