"""The root of every configuration: its keys and their types, so that a misspelt one is refused in any yaml."""

from dataclasses import dataclass
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

CHECKS = ("fast", "full")
SINGLE_VALUES = ("seed", "sweep_name", "cell", "check")  # top-level keys that are no groups


@dataclass
class RunSchema:
    """Top-level keys. Groups are plain nodes: the signatures of their targets type them."""

    task: Any = MISSING
    model: Any = MISSING
    adapter: Any = MISSING
    reference: Any = MISSING
    corruption: Any = MISSING
    loss: Any = MISSING
    data: Any = MISSING
    evaluation: Any = MISSING
    decoding: Any = MISSING
    trainer: Any = MISSING
    cache: Any = MISSING
    logger: Any = MISSING
    paths: Any = MISSING
    seed: int = 0
    sweep_name: Optional[str] = None  # noqa: UP045  # OmegaConf reads this annotation at run time and wants this form
    cell: Optional[str] = None  # noqa: UP045
    check: str = "fast"


def register() -> None:
    """Makes the schema known to Hydra under the name that conf/config.yaml lists first."""
    ConfigStore.instance().store(name="run_schema", node=RunSchema)
