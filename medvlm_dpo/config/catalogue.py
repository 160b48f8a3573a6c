"""Where the yaml files lie, and what the catalogue of losses offers."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from medvlm_dpo.config.schema import register


class CatalogueLoss(NamedTuple):
    """One loss of the catalogue as it is composed when a command names it and nothing else.

    Args:
        node: the resolved yaml.
        corruption: the corruption chosen, the loss's own or the root's.
        reference: the reference chosen, likewise.
    """

    node: dict[str, Any]
    corruption: str
    reference: str


def conf_folder() -> Path:
    """The folder of the yaml files: beside the sources in a clone, inside the installed package in a wheel."""
    package = Path(__file__).resolve().parent.parent
    clone = package.parent / "conf"
    return clone if (package.parent / "run.py").is_file() and clone.is_dir() else package / "conf"


def choices_of(group: str) -> list[str]:
    """The names a group offers, sorted."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def loss_names() -> list[str]:
    """The names of all losses, sorted."""
    return choices_of("loss")


@cache
def catalogue() -> dict[str, CatalogueLoss]:
    """Every loss of conf/loss by name."""
    return {name: compose_loss([f"loss={name}"]) for name in loss_names()}


def compose_loss(overrides: Sequence[str]) -> CatalogueLoss:
    """The loss that a command's overrides name, composed through the root configuration: sums and their corruption included."""
    register()
    before = GlobalHydra.instance().hydra  # a command that is being composed has one already
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
            config = compose("config", overrides=list(overrides), return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = before
    choices = config.hydra.runtime.choices
    node: Any = OmegaConf.to_container(config.loss, resolve=True)
    return CatalogueLoss(node, choices.corruption, choices.reference)
