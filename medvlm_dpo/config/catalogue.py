"""Where the yaml files lie, and what the catalogue of losses offers."""

from pathlib import Path
from typing import Any

import yaml


def conf_folder() -> Path:
    """The folder of the yaml files: beside the sources in a clone, inside the installed package in a wheel."""
    package = Path(__file__).resolve().parent.parent
    clone = package.parent / "conf"
    return clone if (package.parent / "run.py").is_file() and clone.is_dir() else package / "conf"


def loss_nodes() -> dict[str, dict[str, Any]]:
    """Every lone function of conf/loss by name; sums need composing and are left out."""
    nodes = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(conf_folder().glob("loss/*.yaml"))}
    return {name: node for name, node in nodes.items() if "_target_" in node}
