"""How a process that computes is set up: threads and determinism, the same for cells and for what is computed before them."""

import os

import torch


def given_threads() -> int:
    """CPU threads of this process: what the launcher gave, else every core. More would be slower, not faster."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else len(os.sched_getaffinity(0))


def settle_torch(threads: int) -> None:
    """Sets threads and deterministic algorithms for this process."""
    torch.set_num_threads(threads)
    # Without it cuBLAS refuses to work deterministically: https://docs.nvidia.com/cuda/cublas/#results-reproducibility
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(mode=True)


def device() -> str:
    """Where models run in this process."""
    return "cuda" if torch.cuda.is_available() else "cpu"
