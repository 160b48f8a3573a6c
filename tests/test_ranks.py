"""The result of a step does not depend on how the global batch is cut: one process, micro-batches, or two processes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_world import outcome, run, worker
from torch.multiprocessing.spawn import spawn

from medvlm_dpo import ranks
from medvlm_dpo.config.catalogue import loss_names

TOLERANCE = 1e-9
SHARES = ("accuracy", "gain")  # steps from 0 to 1: at a tie, as before the first update, rounding decides; the margins are compared


def assert_same(folder: Path, whole: Path) -> None:
    """Losses, metrics and adapters within 1e-9, relative or absolute."""
    (lines, adapter), (expected_lines, expected_adapter) = outcome(folder), outcome(whole)
    assert len(lines) == len(expected_lines) == 4, "validation, two steps, validation"
    for line, expected in zip(lines, expected_lines, strict=True):
        assert line.keys() == expected.keys()
        compared = [name for name in line if not name.endswith(SHARES)]
        differing = {name: (line[name], expected[name]) for name in compared if not close(line[name], expected[name])}
        assert not differing
    for name, tensor in expected_adapter.items():
        torch.testing.assert_close(adapter[name], tensor, rtol=1e-7, atol=TOLERANCE, msg=f"{name} differs")


def close(value: Any, expected: Any) -> bool:
    return math.isclose(value, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


@pytest.mark.slow
def test_every_loss_is_the_same_for_one_process_micro_batches_and_two_processes(untrained_model: Path, tmp_path: Path) -> None:
    """1 x 8, 4 x 2 accumulated, 3 + 3 + 2 accumulated, and two processes, whose shares have nearly equal tokens."""
    losses = loss_names()
    spawn(worker, (untrained_model, tmp_path, losses, str(tmp_path / "meeting")), nprocs=2)
    for loss in losses:
        for size in (8, 2, 3):
            run(untrained_model, tmp_path / str(size) / loss, loss, micro_batch_size=size)
    wrong: dict[str, str] = {}
    for loss in losses:
        for layout in ("2", "3", "rank0", "rank1"):
            try:
                assert_same(tmp_path / layout / loss, tmp_path / "8" / loss)
            except AssertionError as error:
                wrong[f"{loss} as {layout}"] = str(error)
    assert not wrong


@pytest.mark.parametrize("loss", ["kto", "beta_dpo", "aot_unpaired", "mdpo", "tr_dpo", "tdpo2"])
def test_some_losses_are_the_same_for_micro_batches(untrained_model: Path, tmp_path: Path, loss: str) -> None:
    for size in (8, 3):
        run(untrained_model, tmp_path / str(size), loss, micro_batch_size=size)
    assert_same(tmp_path / "3", tmp_path / "8")


def test_two_processes_are_one(untrained_model: Path, tmp_path: Path) -> None:
    spawn(worker, (untrained_model, tmp_path, ["bco", "mdpo"], str(tmp_path / "meeting")), nprocs=2)
    for loss in ("bco", "mdpo"):
        run(untrained_model, tmp_path / "8" / loss, loss, micro_batch_size=8)
        assert_same(tmp_path / "rank0" / loss, tmp_path / "8" / loss)
        assert_same(tmp_path / "rank1" / loss, tmp_path / "8" / loss)


def test_alone_nothing_is_exchanged() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    ranks.add_gradients([weight])

    assert weight.grad is None
    assert ranks.gathered("x") == ["x"]
    assert (ranks.rank(), ranks.num_ranks()) == (0, 1)
