"""Checkpoints of one cell: adapter, optimiser, schedule, statistics state and step; no frozen weights."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.files import SCHEMA_VERSION, write_bytes_atomic

KEPT = 2  # the newest, and the one before it until the newest has been read back


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps done and the states of batch statistics by `<term>/<parameter>`."""

    step: int
    statistics: dict[str, dict[str, torch.Tensor]]


def save_checkpoint(folder: Path, backbone: AbstractBackbone, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Writes `folder/step-<n>` whole or not at all, and removes all but the two newest."""
    final = folder / f"step-{progress.step:08d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    backbone.save_adapter(partial / "adapter")
    # There is no generator state to keep: after the adapter is made nothing draws (dropout is off, the sampler is stateless).
    torch.save({"optimizer": optimizer.state_dict(), "statistics": progress.statistics}, partial / "state.pt")
    write_bytes_atomic(partial / "progress.json", json.dumps({"schema_version": SCHEMA_VERSION, "step": progress.step}).encode())
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in _newest_first(folder)[KEPT:]:
        shutil.rmtree(old)


def load_newest(folder: Path, backbone: AbstractBackbone, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Restores the newest checkpoint that can be read; None when there is none."""
    for candidate in _newest_first(folder):
        try:
            step = int(json.loads((candidate / "progress.json").read_text())["step"])
            state: dict[str, Any] = torch.load(candidate / "state.pt", weights_only=True)
            backbone.load_adapter(candidate / "adapter")
        except (OSError, ValueError, KeyError, RuntimeError, EOFError) as error:
            print(f"checkpoint {candidate.name} cannot be read ({type(error).__name__}); trying the one before")
            continue
        optimizer.load_state_dict(state["optimizer"])
        return Progress(step, state["statistics"])
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)
