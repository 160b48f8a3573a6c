"""How many floating-point operations a step needs, and how fast this machine multiplies matrices. No torch until something is measured."""

import json
import sys
import time
from dataclasses import dataclass

from tests.benchmarks.shape import Shape

MEASURED_S = 1.0  # of multiplications, to learn the machine's pace


@dataclass(frozen=True)
class NeededWork:
    """What one optimiser step of a LoRA model has to compute.

    Args:
        shape: of the model.
        tokens: that the language model reads; what sequences share counts once.
        answer_tokens: that the head scores.
    """

    shape: Shape
    tokens: float
    answer_tokens: float

    def flops(self, *, with_reference: bool = False) -> float:
        """4 N a token: 2 N forward and 2 N for gradients of activations, since frozen weights have none of their own; a reference adds 2 N.

        N are the weights of linear layers, without the embedding: the decoder's for every token, the head's for answer tokens.
        Attention scores, adapters (under 1 %), the vision tower are left out.
        """
        head = self.shape.hidden * self.shape.vocabulary
        return (6 if with_reference else 4) * (linear_weights(self.shape) * self.tokens + head * self.answer_tokens)


def linear_weights(shape: Shape) -> int:
    """Weights of the decoder's linear layers, without embedding and head."""
    width = shape.hidden // shape.heads
    attention = shape.hidden * width * (2 * shape.heads + 2 * shape.key_value_heads)
    return shape.layers * (attention + 3 * shape.hidden * shape.intermediate)


def matmul_flops_per_s(rows: int, inner: int, columns: int) -> float:
    """Of a float32 product [rows, inner] x [inner, columns] on this machine's processor, with the threads torch has."""
    import torch

    left, right = torch.randn(rows, inner), torch.randn(columns, inner)
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < MEASURED_S or count < 2:
        torch.nn.functional.linear(left, right)
        count += 1
    return 2 * rows * inner * columns * count / elapsed


def main() -> None:
    """`python -m tests.benchmarks.work ROWS INNER COLUMNS THREADS` prints the pace as JSON; in a process of its own."""
    import torch

    rows, inner, columns, threads = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    print(json.dumps({"flops_per_s": matmul_flops_per_s(rows, inner, columns)}))


if __name__ == "__main__":
    main()
