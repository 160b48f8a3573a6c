"""What a cell is: the settings and contents that change its trained weights, hashed into its name.

Paths, machine settings, evaluation and logging are not part of it: moving the data, halving the micro-batch or adding a test set
must find the finished cell again. Contents stand in place of paths: an edited data file is another cell.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medvlm_dpo.errors import InputError
from medvlm_dpo.files import sha256_of_json

SCIENCE_GROUPS = ("model", "adapter", "reference", "corruption", "loss", "data", "trainer")

# Keys whose value is a place in a file system. Their content is hashed, by the check, in place of them.
PATH_KEYS = frozenset({"path", "image_root", "checkpoint", "starting_model"})

# Keys of one group that decide how fast or how observed a run is, never what it computes.
MACHINE_KEYS: Mapping[str, frozenset[str]] = {
    "model": frozenset({"source"}),  # words for the user
    "data": frozenset({"num_workers"}),
    "trainer": frozenset(
        {
            "layout",
            "micro_batch_tokens",
            "micro_batch_size",
            "activation_checkpointing",
            "threads",
            "num_workers",
            "checkpoint_every_steps",
            "checkpoint_every_min",
            "validate_every_steps",
            "progress",
        }
    ),
    "decoding": frozenset({"batch_size"}),
    "loss": frozenset({"card"}),  # words for people
}

# Keys that came later, with the value that means what was done before there were any: a cell that is older than the key is the same cell.
LATER_KEYS: Mapping[str, Mapping[str, Any]] = {"model": {"dtype": None}, "trainer": {"order": "shuffled"}}


@dataclass(frozen=True)
class Identity:
    """The identity of a cell.

    Args:
        hash: hexadecimal SHA-256 of everything that decides the trained weights.
        name: readable name of the folder, ending in the first eight digits of the hash.
    """

    hash: str
    name: str

    @property
    def hash8(self) -> str:
        """The first eight digits of the hash."""
        return self.hash[:8]


@dataclass(frozen=True)
class CheckedCell:
    """What the deep check found out about one composed cell; travels from the checking process to the driver.

    Args:
        problems: one sentence per mistake; with any of them nothing starts.
        content: content hashes that belong to the cell's identity: `data`, `model`, and what else decides the weights.
        evaluation_content: content hash of the questions and their images.
        graders: by grader name, its version.
        notes: facts worth one line each (dropped records, converted images).
        unread: groups the loss does not read, whose choice therefore is not part of the cell.
        num_train_examples: examples the cell trains on.
        steps: optimiser steps.
    """

    problems: list[str] = field(default_factory=list[str])
    content: dict[str, str] = field(default_factory=dict[str, str])
    evaluation_content: str = ""
    graders: dict[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])
    unread: list[str] = field(default_factory=list[str])
    num_train_examples: int = 0
    steps: int = 0


def science_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that decides the trained weights: science groups and seed, without paths."""
    science = {group: _science(config.get(group), group) for group in SCIENCE_GROUPS}
    return {**science, "seed": config["seed"]}


def cell_identity(config: Mapping[str, Any], content: Mapping[str, str]) -> Identity:
    """Identity of a training cell.

    Args:
        config: resolved configuration with `choices`, the names chosen per group.
        content: content hashes that stand in place of the paths, at least `data` and `model`.

    Returns:
        The identity; its name is `<model>-<loss>-<data>-s<seed>-<hash8>`.
    """
    _require(content, ("data", "model"))
    choices = config["choices"]
    digest = sha256_of_json({"kind": "train", "science": science_of(config), "content": dict(content)})
    words = [*(_word(choices[group]) for group in ("model", "loss", "data")), f"s{config['seed']}", digest[:8]]
    return Identity(digest, "-".join(words))


def start_identity(config: Mapping[str, Any], content: Mapping[str, str]) -> Identity:
    """Identity of the untouched starting model, `<model>-start-<hash8>`: its settings and weights, nothing else."""
    _require(content, ("model",))
    digest = sha256_of_json({"kind": "start", "science": _science(config["model"], "model"), "content": {"model": content["model"]}})
    return Identity(digest, f"{_word(config['choices']['model'])}-start-{digest[:8]}")


def evaluation_identity(evaluation: Mapping[str, Any], decoding: Mapping[str, Any], content: str) -> str:
    """Folder name of an evaluation, `<evaluation>-<hash8>`: questions, decoding and their content decide the answers.

    Graders are no part of it: a further grader re-reads the stored answers, and neither trains nor generates again.
    """
    asked = {key: value for key, value in evaluation.items() if key != "graders"}
    science = {"evaluation": _science(asked, "evaluation"), "decoding": _science(decoding, "decoding"), "content": content}
    return f"{_word(evaluation['name'])}-{sha256_of_json(science)[:8]}"


def _science(value: Any, group: str) -> Any:
    """A copy without paths, machine settings and bookkeeping keys; 1.0 and 1 are the same number."""
    if isinstance(value, Mapping):
        shared = value.get("_shared_") or ()
        paths = frozenset[str]() if group == "loss" else PATH_KEYS  # a loss has no files: all its settings are science
        as_before = {key for key, before in LATER_KEYS.get(group, {}).items() if value.get(key) == before}
        hidden = {"_partial_", "_shared_", *paths, *shared, *as_before, *MACHINE_KEYS.get(group, ())}
        kept = _without_idle_terms(value) if group == "loss" else value
        return {str(key): _science(item, group) for key, item in kept.items() if key not in hidden}
    if isinstance(value, list | tuple):
        return [_science(item, group) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _without_idle_terms(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """A sum without its terms of weight 0: they are not there."""
    terms, weights = node.get("terms"), node.get("weights")
    if not isinstance(terms, Mapping) or not isinstance(weights, Mapping):
        return node
    idle = {name for name, weight in weights.items() if weight == 0}
    return {**node, **{key: {k: v for k, v in part.items() if k not in idle} for key, part in (("terms", terms), ("weights", weights))}}


def _word(choice: object) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", str(choice))


def _require(content: Mapping[str, str], names: tuple[str, ...]) -> None:
    missing = [name for name in names if not content.get(name)]
    if missing:
        raise InputError(
            f"the content hash of {', '.join(missing)} is missing: a cell cannot be named by paths alone; report this as a bug"
        )
