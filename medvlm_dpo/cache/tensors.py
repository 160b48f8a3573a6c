"""Tensors as a store keeps them: numpy has no bfloat16, whose bits are kept as unsigned integers."""

import torch
from torch import Tensor

from medvlm_dpo.cache.blocks import Array


def array_of(values: Tensor) -> Array:
    """A tensor of any shape as it is stored, without gradient."""
    there = values.detach().cpu()
    return there.view(torch.uint16).numpy() if there.dtype == torch.bfloat16 else there.numpy()


def tensor_of(array: Array, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The tensor that `array_of` stored, on the CPU; it shares the array's memory.

    Args:
        array: as stored.
        dtype: what bits are read as.
    """
    tensor = torch.from_numpy(array)
    return tensor.view(dtype) if tensor.dtype == torch.uint16 else tensor
