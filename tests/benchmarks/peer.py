"""TRL's side: its own DPOTrainer on the same model, adapter, pairs and schedule.

Every setting is the fastest sensible one for a machine without a GPU:

* float32 and no gradient checkpointing: TRL's defaults, bfloat16 and checkpointing, are slower here, the second by a whole forward pass.
* a fresh adapter (`peft_config`) and no `ref_model`: the reference is the model with its adapter off, so there is no second copy of it.
* attention "sdpa", which never forms the score matrix; the same kernels as ours.
* prompts and answers as plain text with their special tokens in it: no chat template has to be rendered.
* `max_length=None`: nothing is cut, nothing is compared. One micro-batch per step: no accumulation.
* no workers: two cores are busy with the model already, and a worker would take from them. No evaluation, saving, logging, progress bar.
* the fused AdamW, TRL's own default.
* `precompute_ref_log_probs` is refused by TRL for data with pictures, so the reference is computed in every step.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from datasets import Dataset
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from trl.trainer import utils as trl_utils
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from medvlm_dpo.backbones.adapter import LoraSettings
from medvlm_dpo.vocab import Example
from tests.benchmarks.gate import Gate
from tests.benchmarks.shape import Shape
from tests.benchmarks.world import ADAPTER, PROMPT, SEED, backbone, lora_settings, make_pairs, read_shape, stream, trainer_settings

BETA = 0.1


class Steps(TrainerCallback):
    """Stops between two steps: a step is everything from one end of an optimiser step to the next, data preparation included."""

    def __init__(self, gate: Gate, losses: Sequence[float]) -> None:
        self._gate, self._losses = gate, losses

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._gate.between_steps()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._gate.between_steps(self._losses[-1])


class RecordingTrainer(DPOTrainer):
    """Keeps every step's loss with all its digits."""

    losses: list[float]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses.append(float(loss))
        return loss


def processor_of(folder: Path, shape: Shape) -> LlavaProcessor:
    """The processor by its parts: `AutoProcessor` would ask for torchvision."""
    return LlavaProcessor(
        image_processor=LlavaImageProcessorPil.from_pretrained(folder, local_files_only=True),
        tokenizer=AutoTokenizer.from_pretrained(folder, local_files_only=True),
        patch_size=shape.patch_side,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    )


def row_of(example: Example, processor: Any) -> dict[str, Any]:
    """A pair as TRL's collator wants it: whole texts with their special tokens, and a decoded picture."""
    first, last = processor.tokenizer.bos_token, processor.tokenizer.eos_token
    question = PROMPT["human"].replace("{text}", PROMPT["image"] + example.turns[0].text)
    answers = {"chosen": example.chosen or "", "rejected": example.rejected or ""}
    texts = {view: PROMPT["gpt"].replace("{text}", text) + last for view, text in answers.items()}
    return {"prompt": first + question, **texts, "image": example.image.load()}


def lora_config(settings: LoraSettings) -> LoraConfig:
    """The same layers, rank and scale as ours."""
    names = "|".join(settings.target_modules)
    return LoraConfig(
        r=settings.rank,
        lora_alpha=int(settings.alpha),
        target_modules=rf".*language_model\..*\.({names})",
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )


def make_trainer(folder: Path, output: Path, changes: Mapping[str, Any]) -> RecordingTrainer:
    """A trainer that stands before its first step.

    Args:
        folder: written by `world.write_model`.
        output: where TRL may write; nothing is saved there.
        changes: of the shape the folder was written with.
    """
    shape = replace(read_shape(folder), **changes)
    model: Any = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    )
    trainer = trainer_around(model, folder, output, shape, use_cpu=True, bf16=False)
    loaded = set_peft_model_state_dict(trainer.model, load_file(folder / ADAPTER / "adapter_model.safetensors"))
    if loaded.unexpected_keys:
        raise ValueError(f"the initial adapter does not fit TRL's model: {loaded.unexpected_keys[:3]}")
    return trainer


def trainer_around(model: Any, folder: Path, output: Path, shape: Shape, **changes: Any) -> RecordingTrainer:
    """TRL's trainer around a model that is in memory already."""
    settings = trainer_settings(shape)
    processor = processor_of(folder, shape)
    examples = stream(shape, make_pairs(shape, backbone(folder).encoder))
    arguments: dict[str, Any] = {
        "output_dir": str(output),
        "per_device_train_batch_size": shape.batch_size,
        "max_steps": shape.steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.gradient_clip_norm,
        "beta": BETA,
        "loss_type": ["sigmoid"],
        "max_length": None,
        "activation_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": SEED,
    }
    trainer = RecordingTrainer(
        model=model,
        args=DPOConfig(**{**arguments, **changes}),
        train_dataset=Dataset.from_list([row_of(example, processor) for example in examples]),
        processing_class=processor,
        peft_config=lora_config(lora_settings(shape)),
    )
    trainer.losses = []
    return trainer


def answers_only(wanted: bool) -> AbstractContextManager[Any]:
    """Makes TRL's head read answer tokens only, as it does on CUDA; on a CPU it reads every position (`add_fused_lm_head`).

    The kernels stay those for a CPU: the function is replaced in the one module that chooses positions by it.
    """
    return mock.patch.object(trl_utils, "_use_triton", return_value=True) if wanted else nullcontext()


def main() -> None:
    """`python -m tests.benchmarks.peer ARGUMENTS`, started by `gate.Side`."""
    gate, arguments = Gate(), json.loads(sys.argv[1])
    trainer = make_trainer(Path(arguments["folder"]), Path(arguments["output"]), arguments.get("changes", {}))
    gate.ready(threads=torch.get_num_threads())
    trainer.add_callback(Steps(gate, trainer.losses))
    with answers_only(arguments.get("answers_only", False)):
        trainer.train()


if __name__ == "__main__":
    main()
