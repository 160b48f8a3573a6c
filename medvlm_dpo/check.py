"""The deep check of composed cells: every mistake that can be known before a weight is read, and what the cells are made of."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.caches import folder_problems
from medvlm_dpo.config.catalogue import catalogue, choices_of, compose_loss, loss_names
from medvlm_dpo.config.identity import CheckedCell
from medvlm_dpo.config.instantiate import call_if_any, call_target, check_targets
from medvlm_dpo.data.content import content_of, read_source
from medvlm_dpo.data.corruption.base import Corruption
from medvlm_dpo.data.manifest import Manifest
from medvlm_dpo.data.records import BadRecord
from medvlm_dpo.data.sampler import num_steps
from medvlm_dpo.errors import InputError
from medvlm_dpo.evaluation.tasks import EvaluationTask
from medvlm_dpo.files import sha256_of_json
from medvlm_dpo.objectives.terms import Objective, build_objective, problems_of
from medvlm_dpo.preparation import (
    PreparedData,
    corruption_problems,
    prepare_data,
    question_problems,
    reads_corrupted,
    record_problems,
    unmatched_problems,
)
from medvlm_dpo.reference import AbstractReference
from medvlm_dpo.settings import CacheSettings, DecodingSettings, TrainerSettings

Config = Mapping[str, Any]


def check_cells(configs: list[dict[str, Any]], manifest_path: str, full: bool) -> list[CheckedCell]:  # noqa: FBT001 - crosses a process border
    """Checks every cell of a grid; parts that cells share are read once.

    Args:
        configs: resolved configurations, each with its `choices`.
        manifest_path: where content hashes are remembered.
        full: hash every file again instead of trusting size and time.

    Returns:
        One result per configuration, in order; a cell with problems has no contents.
    """
    manifest = Manifest(Path(manifest_path), full=full)
    parts = _Parts(manifest)
    checked = [_check_cell(config, parts) for config in configs]
    if not any(cell.problems for cell in checked):  # nothing is written for a command that is refused
        manifest.save()
    return checked


def weights_content(backbone: AbstractBackbone, manifest: Manifest) -> str:
    """Hash of the files that decide what the starting model computes."""
    return sha256_of_json({file.name: manifest.sha256(file) for file in backbone.weight_files()})


class _Parts:
    """Objects built from nodes, each distinct node once per check."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._made: dict[str, Any] = {}

    def made(self, kind: str, key: object, make: Callable[[], Any]) -> Any:
        """The object, or the InputError that making it raised, remembered under its node."""
        name = f"{kind}:{json.dumps(key, sort_keys=True)}"
        if name not in self._made:
            try:
                self._made[name] = make()
            except InputError as error:
                self._made[name] = error
        if isinstance(self._made[name], InputError):
            raise self._made[name]
        return self._made[name]


class _Collector:
    """Runs one stage of a check after the other and keeps what goes wrong; a stage whose input is missing is left out."""

    def __init__(self, config: Config) -> None:
        self._config = config
        problems = {group: check_targets({group: part}) for group, part in config.items() if group not in ("loss", "task")}
        self._unsound = {group for group, found in problems.items() if found}  # nothing is built from these
        self.problems = [problem for found in problems.values() for problem in found]

    def attempt(self, stage: Callable[[], Any], *groups: str) -> Any:
        """The stage's result, or None after noting its problems; left out where one of the groups it builds from is unsound."""
        if self._unsound.intersection(groups):
            return None
        try:
            return stage()
        except InputError as error:
            self.problems += [problem for problem in error.problems if problem not in self.problems]
            return None

    def built(self, group: str) -> Any:
        """What a group describes, or None."""
        return self.attempt(lambda: call_if_any(self._config[group]), group)


def _check_cell(config: Config, parts: _Parts) -> CheckedCell:
    collector = _Collector(config)
    trainer: TrainerSettings | None = collector.built("trainer")
    collector.built("adapter")
    cache: CacheSettings | None = collector.built("cache")
    collector.problems += folder_problems(cache) if cache is not None else []
    decoding: DecodingSettings | None = collector.built("decoding")
    collector.problems += _loss_problems(config)
    reference: AbstractReference | None = collector.built("reference")
    corruption: Corruption | None = collector.built("corruption")
    backbone: AbstractBackbone | None = collector.attempt(
        lambda: parts.made("model", config["model"], lambda: call_target(config["model"])), "model"
    )
    data: PreparedData | None = None
    task: EvaluationTask | None = collector.built("evaluation")
    evaluation_content, notes = "", list[str]()
    if backbone is not None:
        data = collector.attempt(lambda: _prepared(config, backbone, parts), "data")
        if task is not None and decoding is not None:
            questions: _CheckedQuestions | None = collector.attempt(lambda: _checked_questions(config, task, decoding, backbone, parts))
            evaluation_content, notes = questions or ("", [])
    else:
        _check_records_alone(config, task, parts, collector)
    if collector.problems or backbone is None or data is None or trainer is None or task is None:
        return CheckedCell(problems=collector.problems)
    objective = build_objective(config["loss"], batch_size=trainer.batch_size)
    asked = {
        "views": sorted(objective.demand.views),
        "facts": sorted(objective.demand.facts),
        "terms": [term.name for term in objective.terms],
    }
    key = {"data": config["data"], "model": config["model"], "corruption": config["corruption"], **asked}
    problems = parts.made("fit", key, lambda: _fit_problems(objective, data, backbone))
    problems = [*problems, *parts.made("corrupted", key, lambda: _corruption_problems(objective, data, corruption, config))]
    problems += _reference_problems(objective, reference, config)
    problems += _validation_problems(config["loss"], len(data.examples["validation"]), trainer.batch_size)
    num_train = len(data.examples["train"])
    steps = num_steps(num_examples=num_train, batch_size=trainer.batch_size, max_epochs=trainer.max_epochs, max_steps=trainer.max_steps)
    return CheckedCell(
        problems=problems,
        content={
            "data": parts.made("data content", config["data"], lambda: content_of(call_target(config["data"]), parts.manifest)),
            "model": parts.made("model content", config["model"], lambda: weights_content(backbone, parts.manifest)),
        },
        evaluation_content=evaluation_content,
        graders={name: grader.version for name, grader in task.graders.items()},
        notes=[
            *data.notes,
            *notes,
            *_few_examples_notes(num_train, trainer.batch_size),
            *_unread_notes(objective, config),
            *_reference_notes(config, reference if objective.demand.needs_reference else None, steps),
            *_dropped_notes(data.dropped, "data", "result.json"),
        ],
        num_train_examples=num_train,
        unread=_unread(objective),
        steps=steps,
    )


def _few_examples_notes(num_train: int, batch_size: int) -> list[str]:
    if num_train >= batch_size:
        return []
    return [f"trainer.batch_size={batch_size} is more than the {num_train} training examples: some stand in one step twice"]


def _loss_problems(config: Config) -> list[str]:
    batch_size = config["trainer"].get("batch_size")
    loss = config["loss"]
    return problems_of(loss, batch_size=batch_size if isinstance(batch_size, int) and batch_size >= 1 else 2)


def _prepared(config: Config, backbone: AbstractBackbone, parts: _Parts) -> PreparedData:
    key = {"data": config["data"], "model": config["model"]}
    return parts.made(
        "data",
        key,
        lambda: prepare_data(call_target(config["data"]), backbone, parts.manifest, on_bad_record=config["data"]["on_bad_record"]),
    )


class _CheckedQuestions(NamedTuple):
    """What decides the questions, and sentences to say about them."""

    content: str
    notes: list[str]


def _checked_questions(
    config: Config, task: EvaluationTask, decoding: DecodingSettings, backbone: AbstractBackbone, parts: _Parts
) -> _CheckedQuestions:
    def read() -> _CheckedQuestions:
        report = read_source(task.source, parts.manifest)
        problems = question_problems(report.questions, backbone, max_new_tokens=decoding.max_new_tokens)
        if problems:
            raise InputError(problems)
        notes = [*(f"evaluation: {note}" for note in report.notes), *_dropped_notes(report.dropped, "evaluation", "scores.json")]
        return _CheckedQuestions(content_of(task.source, parts.manifest), notes)

    return parts.made("questions", {key: config[key] for key in ("evaluation", "decoding", "model")}, read)


def _check_records_alone(config: Config, task: EvaluationTask | None, parts: _Parts, collector: _Collector) -> None:
    """What can be said of records and questions without a tokenizer."""
    collector.attempt(
        lambda: parts.made("records", config["data"], lambda: read_source(call_target(config["data"]), parts.manifest)), "data"
    )
    if task is not None:
        collector.attempt(lambda: parts.made("asked", config["evaluation"], lambda: read_source(task.source, parts.manifest)))


def _fit_problems(objective: Objective, data: PreparedData, backbone: AbstractBackbone) -> list[str]:
    problems = record_problems(objective, data.examples, unpaired_losses=_unpaired_losses)
    if "unmatched" in objective.demand.views:
        for examples in data.examples.values():
            problems += unmatched_problems(examples, backbone)
    return problems


def _corruption_problems(objective: Objective, data: PreparedData, corruption: Corruption | None, config: Config) -> list[str]:
    if not reads_corrupted(objective.demand):
        return []
    if corruption is None:
        valid = [name for name in choices_of("corruption") if name != "none"]
        return [f"this loss scores answers on a corrupted image, but corruption=none; choose one of {', '.join(valid)}"]
    return corruption_problems(corruption, config["choices"].get("corruption", "this"), data.examples)


def _reference_problems(objective: Objective, reference: AbstractReference | None, config: Config) -> list[str]:
    if reference is None or reference.is_start or objective.demand.needs_reference:
        return []
    choices = config["choices"]
    return [f"reference={choices.get('reference')}, but {choices['loss']} reads no reference; leave reference= away"]


def _reference_notes(config: Config, reference: AbstractReference | None, steps: int) -> list[str]:
    """What the reference says of this run, and whether the loss, by its name, is defined with another one."""
    own_note = reference.note(steps) if reference is not None else None
    notes = [own_note] if own_note is not None else []
    name, chosen = str(config["choices"]["loss"]), str(config["choices"].get("reference"))
    asked = any(item.lstrip("+").partition("=")[0] == "reference" for item in config["overrides"])
    if asked and name in loss_names() and (own := compose_loss([f"loss={name}"]).reference) != chosen:
        notes.append(f"loss={name} is defined with reference={own}; with reference={chosen} the name stands for another loss")
    return notes


def _validation_problems(loss: Config, num_pairs: int, batch_size: int) -> list[str]:
    """Batch statistics that the validation pairs are too few for."""
    if not num_pairs:
        return []
    smallest = num_pairs // -(-num_pairs // batch_size)
    counted = f"{smallest} pair{'s' if smallest != 1 else ''} at a time"
    return [f"validation, {counted}: {problem}" for problem in problems_of(loss, batch_size=smallest)]


def _unread(objective: Objective) -> list[str]:
    """Groups that this loss does not read: what they say cannot change the weights."""
    read = {"corruption": reads_corrupted(objective.demand), "reference": objective.demand.needs_reference}
    return [group for group, is_read in read.items() if not is_read]


def _unread_notes(objective: Objective, config: Config) -> list[str]:
    asked = [item for item in config["overrides"] if item.lstrip("+").startswith("corruption")]
    if reads_corrupted(objective.demand) or not asked:
        return []
    return [f"{' '.join(asked)} changes nothing for loss={config['choices']['loss']}: no term of it reads a corrupted image"]


def _dropped_notes(dropped: Sequence[BadRecord], group: str, file: str) -> list[str]:
    counted = f"{len(dropped)} bad record{'s' if len(dropped) != 1 else ''} left out"
    return [f"{counted} ({group}.on_bad_record=drop); listed in {file}"] if dropped else []


def _unpaired_losses() -> list[str]:
    """Losses of the catalogue that accept examples with one answer, read off their demands."""
    return [name for name, loss in catalogue().items() if not build_objective(loss.node, batch_size=2).demand.required_answers]
