"""Writes made-up sweeps as a ledger, for tests of the report."""

from pathlib import Path

import numpy as np
import yaml

from medvlm_dpo.files import write_json_atomic
from medvlm_dpo.results.predictions import GradeColumn, StoredAnswer, write_predictions
from medvlm_dpo.results.status import Status, write_result, write_status

EVALUATION = "phantom-0a1b2c3d"
ERROR_TYPES = ("presence", "laterality", "modality", "location")


def write_cell(output: Path, cell_id: str, *, config: dict, kind: str = "train", content: dict | None = None, **extra) -> Path:
    """A frozen cell."""
    folder = output / "cells" / cell_id
    folder.mkdir(parents=True)
    document = {
        "schema_version": 1,
        "id": cell_id,
        "kind": kind,
        "hash": "0" * 64,
        "content": content or {"data": "d" * 64, "model": "m" * 64},
    }
    document |= {"code": {"version": "0.1", "hash": "c" * 64}, "frozen_at": "2026-01-01T00:00:00.000+00:00", "config": config, **extra}
    (folder / "cell.yaml").write_text(yaml.safe_dump(document))
    write_status(folder, Status())
    return folder


def config_of(loss: str, seed: int, *, model: str = "phantom_llava", data: str = "phantom", **loss_settings) -> dict:
    """What a cell is frozen with, shortened."""
    choices = {
        "model": model,
        "loss": loss,
        "data": data,
        "adapter": "lora",
        "trainer": "default",
        "reference": "auto",
        "corruption": "none",
    }
    return {
        "choices": choices,
        "seed": seed,
        "model": {"_target_": "medvlm_dpo.backbones.llava.LlavaBackbone", "checkpoint": "builtin:phantom_llava"},
        "adapter": {"rank": 8},
        "loss": {"_target_": f"medvlm_dpo.objectives.{loss}", **loss_settings},
        "data": {"_target_": "medvlm_dpo.data.phantom.source.PhantomPairs", "num_pairs": 100},
        "trainer": {"learning_rate": 0.001},
    }


def finish(folder: Path, metrics: dict, before: float | None = None) -> None:
    """A trained cell; `before` is the preference_accuracy its start had on its pairs."""
    write_status(folder, Status("finished", 1, "2026-01-01T00:00:00.000+00:00", "2026-01-01T00:00:30.000+00:00"))
    start_metrics = {} if before is None else {"validation/preference_accuracy": before}
    measured = {f"validation/{name}": value for name, value in metrics.items()}
    write_result(folder, {"id": folder.name, "metrics": measured, "start_metrics": start_metrics})


def grade(folder: Path, right: np.ndarray, images: np.ndarray, *, evaluation: str = EVALUATION, version: str = "1") -> None:
    """Answers of which every fourth is open, graded by `exact` (all) and `strict` (closed and open)."""
    place = folder / "evaluations" / evaluation
    kinds = ["open" if number % 4 == 3 else "closed" for number in range(len(right))]
    types = [ERROR_TYPES[number % len(ERROR_TYPES)] for number in range(len(right))]
    answers = [
        StoredAnswer(
            f"q{number}", f"i{image}", f"h{image}", types[number], kinds[number], "gold", (), "gold" if score else "wrong", 1, True
        )
        for number, (score, image) in enumerate(zip(right, images, strict=True))
    ]
    metrics = {
        "exact": ["exact_match"] * len(right),
        "strict": [{"open": "open_recall", "closed": "closed_accuracy"}[kind] for kind in kinds],
    }
    scores = tuple(float(score) for score in right)
    write_predictions(place / "predictions.parquet", answers, {name: GradeColumn(tuple(names), scores) for name, names in metrics.items()})
    graders = {
        name: {
            "version": version,
            "overall": averages(right, np.array(names)),
            "by_error_type": {
                kind: averages(right[np.array(types) == kind], np.array(names)[np.array(types) == kind]) for kind in set(types)
            },
        }
        for name, names in metrics.items()
    }
    header = {"evaluation": "phantom", "questions": len(right), "images": len(np.unique(images))}
    told = {"num_empty": 0, "num_unstopped": 2, "mean_num_tokens": 1.0}
    write_json_atomic(place / "scores.json", header | {"answers": told, "graders": graders})


def averages(right: np.ndarray, names: np.ndarray) -> dict:
    """What scores.json holds for one grader."""
    return {
        str(name): {"value": float(right[names == name].mean()), "num_questions": int((names == name).sum()), "num_without_score": 0}
        for name in np.unique(names)
    }


def write_sweep(output: Path, name: str, cells: list[str], starts: list[str], evaluations: tuple[str, ...] = (EVALUATION,)) -> None:
    """The list of a sweep."""
    document = {"name": name, "cells": cells, "starts": starts, "evaluations": list(evaluations), "command": ["run.py"]}
    write_json_atomic(output / "sweeps" / name / "sweep.json", document)


def demo(output: Path, *, losses=("sft", "dpo", "ipo", "kto", "simpo"), seeds=(0, 1, 2), num_images: int = 250, per_image: int = 4) -> None:
    """A whole made-up sweep: dpo is clearly better, the rest wobbles."""
    rng = np.random.default_rng(7)
    images = np.repeat(np.arange(num_images), per_image)
    ease = rng.normal(size=num_images)[images] * 0.5 + rng.normal(size=len(images))
    start = write_cell(output, "phantom_llava-start-00000000", config=config_of("none", 0), kind="start", content={"model": "m" * 64})
    finish(start, {})
    grade(start, ease > -0.8, images)
    cells = []
    for number, loss in enumerate(losses):
        for seed in seeds:
            folder = write_cell(
                output, f"phantom_llava-{loss}-phantom-s{seed}-{number}{seed}abcdef", config=config_of(loss, seed, beta=0.1)
            )
            shift = {"dpo": 0.35, "kto": -0.1}.get(loss, 0.02) + rng.normal() * 0.02
            right = ease + shift + rng.normal(size=len(images)) * 0.25 > -0.8
            margin = shift * 3
            accuracy = {"preference_accuracy": 0.7 + shift / 4, "preference_gain": 0.6 + shift / 2, "preference_margin": margin}
            finish(folder, {**accuracy, "chosen_logps_change": margin / 2, "rejected_logps_change": -margin / 2}, before=0.68)
            grade(folder, right, images)
            cells.append(folder.name)
    write_sweep(output, "demo", cells, [start.name])
