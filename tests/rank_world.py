"""One process of two that share every global batch; started by tests/test_ranks.py with torch's own way of spawning."""

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from core_world import LORA, SETTINGS, adapter_of, encoded, loss_node, make_backbone, make_pairs, metrics_of, to_dtype
from torch import Tensor, distributed

from medvlm_dpo.objectives.terms import build_objective
from medvlm_dpo.reference import MovingReference, StartingReference
from medvlm_dpo.steps import layout_of_run
from medvlm_dpo.training import CellFiles, train

BATCH_SIZE = 8


def run(model: Path, folder: Path, loss: str, *, micro_batch_size: int) -> None:
    """Two float64 steps of one loss and a validation before and after; this process's share of every batch."""
    settings = replace(SETTINGS, batch_size=BATCH_SIZE, micro_batch_size=micro_batch_size, max_steps=2, learning_rate=1e-3)
    backbone = make_backbone(model)
    to_dtype(backbone, torch.float64)
    reference = MovingReference(mix=0.6, every_steps=1) if loss == "tr_dpo" else StartingReference()
    splits = {"train": encoded(make_pairs(12), backbone), "validation": encoded(make_pairs(4, "validation"), backbone)}
    folder.mkdir(parents=True)
    files = CellFiles(folder / "checkpoint", folder / "metrics.jsonl", folder / "adapter")
    objective = build_objective(loss_node(loss), batch_size=BATCH_SIZE)
    layout = layout_of_run(backbone, settings)
    train(
        backbone,
        objective,
        reference,
        splits,
        start=StartingReference(),
        layout=layout,
        adapter=LORA,
        settings=settings,
        seed=0,
        files=files,
    )


def worker(rank: int, model: Path, folder: Path, losses: list[str], port_file: str) -> None:
    """Every loss in turn; rank 1 cuts its share into smaller micro-batches than rank 0."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2, timeout=timedelta(minutes=5))
    try:
        for loss in losses:
            run(model, folder / f"rank{rank}" / loss, loss, micro_batch_size=(4, 3)[rank])
    finally:
        distributed.destroy_process_group()


def outcome(folder: Path) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """The metrics and the adapter of a run."""
    return metrics_of(folder), adapter_of(folder)
