"""One side of `make bench-gpu`: random bfloat16 weights made on the device, trained by our code or by TRL's. Not run on a GPU yet."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import torch
from transformers import LlavaForConditionalGeneration

from tests.benchmarks.cell import make_cell
from tests.benchmarks.gate import Gate
from tests.benchmarks.keeping import fill
from tests.benchmarks.own import run
from tests.benchmarks.peer import Steps, trainer_around
from tests.benchmarks.shape import Shape
from tests.benchmarks.world import SEED, SHAPE_FILE, llava_config, text_config, vision_config, write_surroundings

WEIGHTS_FIT: Mapping[str, list[str]] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}


def write_settings(folder: Path, shape: Shape) -> None:
    """A model folder whose weights nobody reads."""
    folder.mkdir(parents=True)
    llava_config(text_config(shape), vision_config(shape), image_tokens=shape.image_tokens).save_pretrained(folder)
    write_surroundings(folder, shape.image_side)
    (folder / SHAPE_FILE).write_text(json.dumps(asdict(shape)), encoding="utf-8")
    (folder / "model.safetensors").touch()


def random_model(shape: Shape, device: str) -> LlavaForConditionalGeneration:
    """Drawn where it is used: 15 GB need not pass through a file."""
    torch.manual_seed(SEED)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return LlavaForConditionalGeneration(llava_config(text_config(shape), vision_config(shape), image_tokens=shape.image_tokens))
    finally:
        torch.set_default_dtype(before)


def figures(device: str) -> dict[str, float]:
    """Waits for the device; the largest memory it gave out so far. Nothing for a CPU, whose figures the gate takes itself."""
    if device != "cuda":
        return {}
    torch.cuda.synchronize()
    return {"peak_mb": torch.cuda.max_memory_allocated() / 1e6}


def train_own(gate: Gate, folder: Path, shape: Shape, device: str, *, kept: bool, checkpointing: bool) -> None:
    """Our side; with `kept`, caches are filled before the first step and before memory is counted."""
    loaded = (random_model(shape, device), WEIGHTS_FIT)
    with mock.patch.object(LlavaForConditionalGeneration, "from_pretrained", return_value=loaded):
        cell = make_cell(folder, activation_checkpointing=checkpointing)
    caches = folder / "caches" if kept else None
    if caches is not None:
        fill(cell, caches)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    gate.ready(flops=cell.needed_work().flops(), device=device_name(device))
    run(cell, folder / "output", gate.between_steps, caches=caches)


def train_peer(gate: Gate, folder: Path, shape: Shape, device: str, *, checkpointing: bool) -> None:
    """TRL's side; its adapter is drawn by itself, so losses are not compared here."""
    changes = {"use_cpu": device == "cpu", "bf16": device == "cuda", "activation_checkpointing": checkpointing}
    trainer = trainer_around(random_model(shape, device), folder, folder / "output", shape, **changes)
    gate.ready(device=device_name(device))
    trainer.add_callback(Steps(gate, trainer.losses))
    trainer.train()


def device_name(device: str) -> str:
    """As its maker calls it."""
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def main() -> None:
    """`python -m tests.benchmarks.gpu_side ARGUMENTS`, started by `gate.Side`."""
    arguments = json.loads(sys.argv[1])
    folder, shape, device = Path(arguments["folder"]), Shape(**arguments["shape"]), arguments["device"]
    gate = Gate(lambda: figures(device))
    write_settings(folder, shape)
    if arguments["peer"]:
        train_peer(gate, folder, shape, device, checkpointing=arguments["checkpointing"])
    else:
        train_own(gate, folder, shape, device, kept=arguments["kept"], checkpointing=arguments["checkpointing"])


if __name__ == "__main__":
    main()
