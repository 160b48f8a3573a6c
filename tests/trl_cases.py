"""Settings for the comparison with TRL: its attributes and our loss node, made from the same drawn numbers, and many batches at once."""

import math
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from loss_world import loss_node
from trl_texts import World
from trl_world import Outcome, changed, distance, ours

NUM_BATCHES = 200
CLOSE = 1e-9
CLOSE_FLOAT32 = 1e-6

Settings = tuple[Mapping[str, Any], Mapping[str, Any]]  # TRL's attributes, our loss node
Trl = Callable[[Mapping[str, Any], World], Outcome]


class Drawn(NamedTuple):
    """Settings of one batch.

    Args:
        beta: .018 to 1.
        flip_rate: .001 to .45.
        share: 0 to 1.
        weight: .1 to 2.
    """

    beta: float
    flip_rate: float
    share: float
    weight: float


Case = Callable[[Drawn], Settings]


def drawn(random: Random) -> Drawn:
    return Drawn(math.exp(random.uniform(-4, 0)), random.uniform(0.001, 0.45), random.random(), random.uniform(0.1, 2))


def case(trl: Mapping[str, Any], name: str, settings: Mapping[str, Any]) -> Settings:
    """TRL's attributes, and a composed loss of ours with some settings changed."""
    return trl, changed(loss_node(name), settings)


def pair(loss_type: str, beta: float, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Attributes of a DPO trainer with one loss."""
    return {**listed({loss_type: 1.0}, beta), **(more or {})}


def listed(weights: Mapping[str, float], beta: float) -> dict[str, Any]:
    """Attributes of a DPO trainer with a list of losses."""
    return {"loss_types": list(weights), "loss_weights": list(weights.values()), "beta": beta}


def total(terms: Mapping[str, tuple[float, Mapping[str, Any]]]) -> dict[str, Any]:
    """A sum of loss nodes with weights, as a user writes one inline."""
    return {"terms": {key: node for key, (_, node) in terms.items()}, "weights": {key: weight for key, (weight, _) in terms.items()}}


def inline(function: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A term without a yaml of its own."""
    return {"_target_": f"medvlm_dpo.objectives.{function}", "_partial_": True, **settings}


def outcomes(settings_of: Case, worlds: Sequence[World], trl: Trl) -> list[tuple[Outcome, Outcome]]:
    """What we and TRL make of every batch, each with settings of its own."""
    random = Random(2)
    settings = [settings_of(drawn(random)) for _ in worlds]
    return [(ours(node, world), trl(attributes, world)) for (attributes, node), world in zip(settings, worlds, strict=True)]


def worst(pairs: Sequence[tuple[Outcome, Outcome]]) -> float:
    """The largest difference in loss or gradient over all batches."""
    return max(distance(found, expected) for found, expected in pairs)


def worst_reward(pairs: Sequence[tuple[Outcome, Outcome]]) -> float:
    """The largest difference in the rewards TRL logs."""
    return max(abs(found.rewards[view] - reward) for found, expected in pairs for view, reward in expected.rewards.items())
