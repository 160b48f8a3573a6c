"""Several processes on one cell: what they exchange. Without a process group every function is what one process would do.

Only adapters are trained, so gradients are few: they are added in one exchange after the last micro-batch. A rank may have more
micro-batches than another, or none.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import distributed


def num_ranks() -> int:
    """Processes that share a global batch."""
    return distributed.get_world_size() if _grouped() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if _grouped() else 0


def gathered(value: Any) -> list[Any]:
    """What every rank has, in the order of ranks; values are plain, or tensors on the CPU."""
    if not _grouped():
        return [value]
    values: list[Any] = [None] * num_ranks()
    distributed.all_gather_object(values, value)
    return values


def add_gradients(weights: Iterable[torch.nn.Parameter]) -> None:
    """Adds the gradients of all ranks; a rank without any adds 0."""
    if not _grouped():
        return
    asked = list(weights)
    flat = torch.cat([(torch.zeros_like(weight) if weight.grad is None else weight.grad).flatten() for weight in asked])
    distributed.all_reduce(flat)
    for weight, gradient in zip(asked, flat.split([weight.numel() for weight in asked]), strict=True):
        weight.grad = gradient.reshape(weight.shape).clone()


def _grouped() -> bool:
    return distributed.is_available() and distributed.is_initialized()
