"""`make bench-gpu`: our training step and TRL's on the true 7B shapes, random bfloat16 weights, one CUDA GPU. Not run on a GPU yet.

LLaVA-Med is Mistral-7B, HuatuoGPT-Vision is Qwen2-7B, both behind CLIP ViT-L/14-336; LoRA of rank 16 on every linear layer of the language
model. Two 7B models in training do not fit together, so the sides run one after the other, each in a process of its own.

Model FLOP utilisation is needed FLOPs / (seconds x the device's peak). Needed are 4 N a token of packed rows, 2 N forward and 2 N backward
of a LoRA model, N the weights of the linear layers without the embedding (the head counts for answer tokens only); the same number for all
sides, whatever they compute besides. Attention scores, adapters, tower and reference are left out.

`--device cpu --tiny` passes through every line without a GPU; what it prints is no benchmark.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tests.benchmarks.gate import Side, end_orderly
from tests.benchmarks.shape import TINY, Shape
from tests.benchmarks.tables import Comparison, Measured, markdown, spread, surroundings
from tests.benchmarks.targets import EACH_STEP, PEER, WARM

CLIP: dict[str, Any] = {"vision_hidden": 1024, "vision_layers": 24, "lora_rank": 16}
MISTRAL = Shape(50, 32_000, hidden=4096, intermediate=14_336, layers=32, heads=32, key_value_heads=8, **CLIP)
QWEN2 = Shape(50, 152_064, hidden=3584, intermediate=18_944, layers=28, heads=28, key_value_heads=4, family="qwen2", **CLIP)
MODELS = {"LLaVA-Med": MISTRAL, "HuatuoGPT-Vision": QWEN2}
ANSWER_TOKENS = (10, 50, 100)
SIDES = {PEER: {"peer": True}, EACH_STEP: {"peer": False, "kept": False}, WARM: {"peer": False, "kept": True}}
PEAK_TFLOPS = {"H100 PCIe": 756, "H200 NVL": 835, "H100": 989, "H200": 989, "B200": 2250, "A100": 312, "L40S": 362}  # dense bfloat16
WANTED_SPEED, WANTED_UTILISATION = 2.5, 0.45  # of LLaVA-Med with answers of 50 tokens
Row = tuple[str, Measured, Measured, float]  # model, side, peer, share of the device's peak


def peak_flops(device: str, tflops: float | None) -> float:
    """Dense bfloat16 operations a second.

    Raises:
        SystemExit: the device is not in the table and nobody said.
    """
    if tflops is not None:
        return tflops * 1e12
    known = next((value for name, value in PEAK_TFLOPS.items() if name in device), None)
    if known is None:
        raise SystemExit(f"bench-gpu: the peak of {device} is not known here; give its dense bfloat16 TFLOP/s with --peak-tflops")
    return known * 1e12


def run_side(name: str, shape: Shape, chosen: argparse.Namespace) -> tuple[Measured, dict[str, Any]]:
    """One side from its model to its last step, and what it said when it was ready."""
    arguments = {"shape": asdict(shape), "device": chosen.device, "checkpointing": chosen.checkpointing, **SIDES[name]}
    with tempfile.TemporaryDirectory(prefix="medvlm_dpo_bench_gpu_") as scratch:
        folder = str(Path(scratch) / "model")
        side = Side(name, "tests.benchmarks.gpu_side", {**arguments, "folder": folder}, threads=chosen.threads)
        try:
            for _ in range(chosen.warm_up + chosen.timed):
                done = side.step()
                print(f"\n  {name} {done['seconds']:.3f} s, loss {done['loss']:.4f}", file=sys.stderr, flush=True)
            timed = side.steps[chosen.warm_up :]
        finally:
            side.stop()
    seconds, losses = (tuple(step[key] for step in timed) for key in ("seconds", "loss"))
    return Measured(name, shape, seconds, losses, peak_mb=max(step["peak_mb"] for step in timed)), side.facts


def rows_of(model: str, shape: Shape, chosen: argparse.Namespace) -> list[Row]:
    """All sides on one shape."""
    ran = [run_side(name, shape, chosen) for name in SIDES]
    flops = next(facts["flops"] for _, facts in ran if "flops" in facts)
    peak = peak_flops(ran[0][1]["device"], chosen.peak_tflops)
    return [(model, result, ran[0][0], flops / result.median_s / peak) for result, _ in ran]


def table(rows: Sequence[Row]) -> str:
    """As markdown."""
    header = (
        "model", "answer tokens", "side", "s a step, median (min-max)", "pairs/s", "times TRL's", "FLOP utilisation", "peak GB", "of TRL's"
    )  # fmt: skip
    lines = []
    for model, result, peer, utilisation in rows:
        compared = Comparison(result, peer)
        lines.append(
            (model, str(result.shape.answer_tokens), result.name, spread(result.seconds), f"{result.examples_per_second:.2f}",
             f"{compared.speed:.2f}", f"{100 * utilisation:.2g} %", f"{result.peak_mb / 1e3:.1f}", f"{compared.memory:.2f}")
        )  # fmt: skip
    return markdown(header, lines)


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Whether the figures that were wanted are reached."""
    lines: list[str] = []
    for model, result, peer, utilisation in rows:
        if (model, result.shape.answer_tokens, result.name) == ("LLaVA-Med", 50, WARM):
            speed = Comparison(result, peer).speed
            lines.append(f"* {_met(speed >= WANTED_SPEED)}: {speed:.2f} times TRL's pairs/s, wanted at least {WANTED_SPEED}")
            lines.append(f"* {_met(utilisation >= WANTED_UTILISATION)}: {utilisation:.0%} utilisation, wanted {WANTED_UTILISATION:.0%}")
    return lines


def _met(met: bool) -> str:
    return "met" if met else "MISSED"


def main() -> None:
    """Measures, prints; exits with 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: passes through the program, measures nothing of interest")
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 peak of the device, where this program does not know it")
    parser.add_argument("--batch-size", type=int, default=4, help="pairs a step")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations, on both sides")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before the timed ones; the first compile kernels")
    parser.add_argument("--timed", type=int, default=8)
    parser.add_argument("--threads", type=int, default=8)
    chosen = parser.parse_args()
    refuse_without_gpu(chosen.device)
    end_orderly()
    print(
        surroundings(chosen.threads, computed_in="bfloat16 weights, " + ("with" if chosen.checkpointing else "without") + " checkpointing")
    )
    if chosen.tiny or chosen.device == "cpu":
        print("\nThis is no benchmark: tiny shapes or no GPU.")
    for model, whole in MODELS.items():
        rows: list[Row] = []
        for tokens in ANSWER_TOKENS[:1] if chosen.tiny else ANSWER_TOKENS:
            steps = chosen.warm_up + chosen.timed + 1
            shape = replace(whole, answer_tokens=tokens, batch_size=chosen.batch_size, steps=steps)
            rows += rows_of(model, replace(shape, **TINY, vocabulary=600, key_value_heads=2) if chosen.tiny else shape, chosen)
        print("\n" + "\n".join([table(rows), "", *verdicts(rows)]), flush=True)


def refuse_without_gpu(device: str) -> None:
    """Ends the program with status 2 where a GPU is wanted and there is none."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # children must not find one either
        return
    import torch

    if not torch.cuda.is_available():
        print("bench-gpu: torch sees no CUDA GPU on this machine, so nothing was run; run it where there is one.", file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    main()
