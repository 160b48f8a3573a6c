"""Runs one frozen cell from its folder alone: build, train, grade, record. `python -m medvlm_dpo.runner CELL_FOLDER`."""

import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.caches import reference_store, starting_reference, use_pictures
from medvlm_dpo.check import weights_content
from medvlm_dpo.config.identity import start_identity
from medvlm_dpo.config.instantiate import call_if_any, call_target
from medvlm_dpo.data.content import content_of
from medvlm_dpo.data.manifest import Manifest
from medvlm_dpo.errors import InputError, TrainingStoppedError
from medvlm_dpo.grading import grade_cell
from medvlm_dpo.objectives.needs import needs_of
from medvlm_dpo.objectives.terms import build_objective
from medvlm_dpo.preparation import encode_split, prepare_data
from medvlm_dpo.process import device, given_threads, settle_torch
from medvlm_dpo.reference import AbstractReference
from medvlm_dpo.results.cautions import training_cautions
from medvlm_dpo.results.ledger import read_cell
from medvlm_dpo.results.status import mark_ended, mark_running, write_result
from medvlm_dpo.settings import TrainerSettings
from medvlm_dpo.steps import layout_of_run
from medvlm_dpo.training import CellFiles, train

DONE, FAILED, INPUT_WRONG, INTERRUPTED = 0, 1, 2, 130
PACKAGES = ("medvlm_dpo", "torch", "transformers", "peft", "pytorch-lightning", "numpy", "pillow")


class Interrupted(BaseException):
    """Ctrl-C, a closed terminal or a polite kill. A BaseException, so that nothing on the way mistakes it for an error."""


def run_cell(folder: str | Path) -> int:
    """Does whatever a cell still lacks: training, then each of its evaluations. Prints to the process's own output.

    Args:
        folder: the cell's folder with its `cell.yaml`.

    Returns:
        0 when everything is there.

    Raises:
        InputError: if input changed since the cell was frozen, or cannot be used.
        TrainingStoppedError: if the run cannot be trusted.
        KeyboardInterrupt: on SIGINT, SIGTERM or SIGHUP; the cell goes on from its newest checkpoint when it is run again.
    """
    try:
        with _interruptible():
            _run(Path(folder).resolve())
    except Interrupted:
        raise KeyboardInterrupt from None
    return DONE


def main(arguments: list[str]) -> int:
    """`python -m medvlm_dpo.runner CELL_FOLDER`: one cell by hand, with its output on the terminal."""
    if len(arguments) != 1:
        print("usage: python -m medvlm_dpo.runner CELL_FOLDER", file=sys.stderr)
        return INPUT_WRONG
    folder = Path(arguments[0])
    try:
        _existing_cell(folder)
        mark_running(folder)
        run_cell(folder)
    except KeyboardInterrupt:
        mark_ended(folder, "interrupted", "interrupted; the same command goes on")
        return INTERRUPTED
    except (InputError, TrainingStoppedError) as error:
        print(f"error: {error}", file=sys.stderr)
        if (folder / "cell.yaml").is_file():
            mark_ended(folder, "failed", str(error))
            return FAILED
        return INPUT_WRONG
    except BaseException as error:
        mark_ended(folder, "failed", f"{type(error).__name__}: {error}")
        raise
    mark_ended(folder, "finished")
    return DONE


def _existing_cell(folder: Path) -> Mapping[str, Any]:
    if not (folder / "cell.yaml").is_file():
        raise InputError(f"{folder} is no cell: it has no cell.yaml; give a folder under cells/ of an output folder")
    return read_cell(folder).cell


def _run(folder: Path) -> None:
    cell = _existing_cell(folder)
    config: Mapping[str, Any] = cell["config"]
    sys.path.extend(place for place in config["import_folders"] if place not in sys.path)
    threads = given_threads()
    settle_torch(threads)
    manifest = Manifest(Path(config["paths"]["output_dir"]) / "manifest.json")
    backbone: AbstractBackbone = call_target(config["model"])
    _verify("model", weights_content(backbone, manifest), cell)
    adapter = folder / "adapter"

    @cache
    def loaded() -> AbstractBackbone:
        backbone.load()
        use_pictures(call_target(config["cache"]), backbone)
        return backbone

    @cache
    def trained() -> AbstractBackbone:
        model = loaded()
        if cell["kind"] == "train" and not model.has_adapter:
            model.add_adapter(call_target(config["adapter"]), seed=config["seed"])
            model.load_adapter(adapter)
        model.module.to(device())  # the trainer gives it back on the CPU
        return model

    if not (folder / "result.json").is_file():
        result = _train(folder, cell, loaded(), manifest) if cell["kind"] == "train" else {}
        _write_result(folder, cell, {**result, "threads": threads})
    grade_cell(folder, trained, manifest, start_folder=_start_folder(folder, cell))
    manifest.save()


def _start_folder(folder: Path, cell: Mapping[str, Any]) -> Path | None:
    return folder.parent / start_identity(cell["config"], cell["content"]).name if cell["kind"] == "train" else None


def _train(folder: Path, cell: Mapping[str, Any], backbone: AbstractBackbone, manifest: Manifest) -> dict[str, Any]:
    config = cell["config"]
    settings: TrainerSettings = call_target(config["trainer"])
    source = call_target(config["data"])
    data = prepare_data(source, backbone, manifest, on_bad_record=config["data"]["on_bad_record"])
    _verify("data", content_of(source, manifest), cell)
    objective = build_objective(config["loss"], batch_size=settings.batch_size)
    corruption = call_if_any(config["corruption"])
    layout = layout_of_run(backbone, settings)
    store = reference_store(call_target(config["cache"]), backbone, weights=cell["content"]["model"], layout=layout.name)
    start = starting_reference(store, backbone)
    reference: AbstractReference = call_if_any(config["reference"]) or start
    trained = train(
        backbone,
        objective,
        start if reference.is_start else reference,
        {name: encode_split(examples, objective.demand, backbone, corruption) for name, examples in data.examples.items()},
        start=start,
        layout=layout,
        adapter=call_target(config["adapter"]),
        settings=settings,
        seed=config["seed"],
        files=CellFiles(folder / "checkpoint", folder / "metrics.jsonl", folder / "adapter"),
    )
    cautions = training_cautions(trained.metrics)
    for caution in cautions:
        print(f"warning: {caution}")
    return {
        "warnings": cautions,
        "data_class": source.data_class,
        "needs": needs_of(objective),
        "training": trained.training,
        "start_metrics": trained.start_metrics,
        "metrics": trained.metrics,
        "validation_by_error_type": trained.validation_by_error_type,
        "num_examples": {name: len(examples) for name, examples in data.examples.items()},
        "dropped_records": [str(record) for record in data.dropped],
        "notes": list(data.notes),
    }


def _write_result(folder: Path, cell: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    config = cell["config"]
    identity = {"id": cell["id"], "kind": cell["kind"], "hash": cell["hash"], "choices": config["choices"], "seed": config["seed"]}
    packages = {name: _version(name) for name in PACKAGES}
    write_result(folder, {**identity, **result, "code": cell["code"], "packages": packages})


def _verify(what: str, content: str, cell: Mapping[str, Any]) -> None:
    if content != cell["content"][what]:
        raise InputError(f"{what}: its files changed after this cell was frozen. Give the command again: changed input is another cell.")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end the cell at once, with its state written down."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - the signature signal.signal asks for
    raise Interrupted


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
