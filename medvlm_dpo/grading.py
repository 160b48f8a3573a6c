"""Grading a finished cell: every frozen evaluation that lacks answers or scores gets them, and nothing else is done."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.config.instantiate import call_target
from medvlm_dpo.data.content import content_of, read_source
from medvlm_dpo.data.manifest import Manifest
from medvlm_dpo.errors import InputError
from medvlm_dpo.evaluation.generation import generate_answers
from medvlm_dpo.evaluation.scoring import SCORES_FILE, outdated_graders, regrade, score_predictions, write_scores
from medvlm_dpo.evaluation.tasks import EvaluationTask
from medvlm_dpo.results.cautions import length_cautions
from medvlm_dpo.results.predictions import FILE_NAME
from medvlm_dpo.results.status import read_document
from medvlm_dpo.settings import DecodingSettings


class FrozenEvaluation(NamedTuple):
    """One evaluation of a cell: its folder and what is asked there."""

    folder: Path
    document: Mapping[str, Any]

    def task(self) -> EvaluationTask:
        """Questions and graders."""
        return call_target(self.document["evaluation"])


def frozen_evaluations(cell_folder: Path) -> list[FrozenEvaluation]:
    """The evaluations asked of a cell, by name."""
    files = sorted(cell_folder.glob("evaluations/*/evaluation.yaml"))
    return [FrozenEvaluation(file.parent, yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files]


def grade_cell(cell_folder: Path, trained: Callable[[], AbstractBackbone], manifest: Manifest, *, start_folder: Path | None = None) -> None:
    """Brings every evaluation of a cell up to date.

    Args:
        cell_folder: the cell.
        trained: loads the model with the cell's adapter; called only when answers are missing.
        manifest: known content hashes.
        start_folder: the cell of its starting model, with whose answers lengths are compared where they exist; None for a start itself.

    Raises:
        InputError: if questions are not those that were frozen.
    """
    for evaluation in frozen_evaluations(cell_folder):
        task = evaluation.task()
        if not all((evaluation.folder / name).is_file() for name in ("scores.json", FILE_NAME)):
            start = start_folder / "evaluations" / evaluation.folder.name / SCORES_FILE if start_folder is not None else None
            _answer(evaluation, task, trained(), manifest, start)
        elif outdated := outdated_graders(evaluation.folder, task.graders):
            print(f"{evaluation.folder.name}: grading stored answers again with {', '.join(outdated)}")
            regrade(evaluation.folder, {name: task.graders[name] for name in outdated})


def _answer(evaluation: FrozenEvaluation, task: EvaluationTask, backbone: AbstractBackbone, manifest: Manifest, start: Path | None) -> None:
    content = content_of(task.source, manifest)
    if content != evaluation.document["content"]:
        raise InputError(
            f"{evaluation.folder.name}: the questions or their images changed after this evaluation was frozen; give the command again"
        )
    decoding: DecodingSettings = call_target(evaluation.document["decoding"])
    report = read_source(task.source, manifest)
    questions = report.questions
    answers = generate_answers(backbone, questions, max_new_tokens=decoding.max_new_tokens, batch_size=decoding.batch_size, report=_report)
    scored = score_predictions(answers, questions, task.graders)
    cautions = length_cautions(scored.summary, read_document(start, required=False)) if start is not None else []
    for caution in cautions:
        print(f"warning: {caution}")
    (evaluation.folder / FILE_NAME).unlink(missing_ok=True)
    write_scores(
        evaluation.folder,
        scored,
        evaluation=task.name,
        decoding={"max_new_tokens": decoding.max_new_tokens, "strategy": "greedy"},
        data_class=task.source.data_class,
        dropped_records=[str(record) for record in report.dropped],
        warnings=cautions,
    )


def _report(done: int, total: int) -> None:
    if done == total or done % 256 < 1:
        print(f"answered {done}/{total} questions", flush=True)
