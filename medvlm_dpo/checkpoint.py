"""Checkpoints of one cell: adapter, optimiser, schedule, states of statistics and reference, and step; no frozen weights."""

import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.files import read_json, write_json_atomic

KEPT = 2  # the newest, and the one before it until the newest has been read back
# What damaged files raise: JSON, the zip of torch.save, its pickle, safetensors, and an adapter of another shape (an InputError).
UNREADABLE = (OSError, ValueError, TypeError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError)


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps done, tokens scored so far, the states of batch statistics by `<term>/<parameter>`, and the reference's."""

    step: int
    num_tokens: int
    statistics: dict[str, dict[str, torch.Tensor]]
    reference: dict[str, Any]


def save_checkpoint(folder: Path, backbone: AbstractBackbone, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Writes `folder/step-<n>` whole or not at all, and removes all but the two newest."""
    final = folder / f"step-{progress.step:08d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    backbone.save_adapter(partial / "adapter")
    # There is no generator state to keep: after the adapter is made nothing draws (dropout is off, the sampler is stateless).
    state = {"optimizer": optimizer.state_dict(), "statistics": progress.statistics, "reference": progress.reference}
    torch.save(state, partial / "state.pt")
    write_json_atomic(partial / "progress.json", {"step": progress.step, "num_tokens": progress.num_tokens})
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in _newest_first(folder)[KEPT:]:
        shutil.rmtree(old)


def load_newest(folder: Path, backbone: AbstractBackbone, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Restores the newest checkpoint that can be read; None when there is none."""
    for candidate in _newest_first(folder):
        try:
            progress = read_json(candidate / "progress.json")
            step, num_tokens = int(progress["step"]), int(progress["num_tokens"])
            state: dict[str, Any] = torch.load(candidate / "state.pt", weights_only=True)
            backbone.load_adapter(candidate / "adapter")
        except UNREADABLE as error:
            print(f"checkpoint {candidate.name} cannot be read ({type(error).__name__}); trying the one before")
            continue
        optimizer.load_state_dict(state["optimizer"])
        return Progress(step, num_tokens, state["statistics"], state["reference"])
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)
