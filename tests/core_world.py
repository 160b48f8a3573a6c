"""A small world for the tests of the core: pictures, pairs, questions, settings and whole configurations on the untrained model."""

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import rms_norm

from medvlm_dpo.backbones.adapter import LoraSettings
from medvlm_dpo.backbones.llava import LlavaBackbone
from medvlm_dpo.config.catalogue import compose_loss
from medvlm_dpo.data.collate import collate
from medvlm_dpo.data.corruption.base import corrupted_image
from medvlm_dpo.data.corruption.geometry import Crop
from medvlm_dpo.data.encoding import EncodedExample, encode_examples
from medvlm_dpo.data.partners import unmatched_partners
from medvlm_dpo.data.phantom.pairs import PhantomImage
from medvlm_dpo.data.phantom.source import PhantomPairs, PhantomQuestions
from medvlm_dpo.data.segments import Layout, Pictures, PlainLayout
from medvlm_dpo.objectives.terms import build_objective
from medvlm_dpo.reference import AbstractReference, StartingReference
from medvlm_dpo.settings import TrainerSettings
from medvlm_dpo.steps import layout_of_run
from medvlm_dpo.training import CellFiles, TrainedCell, train
from medvlm_dpo.vocab import Batch, Example, Question, Turn

CONF = Path(__file__).resolve().parent.parent / "conf"
PROMPT = {"begin_of_sequence": True, "image": "<image>\n", "human": "[INST] {text} [/INST]", "gpt": " {text}"}
LORA = LoraSettings(rank=4, alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
SETTINGS = TrainerSettings(
    max_steps=3,
    max_epochs=1.0,
    batch_size=4,
    learning_rate=1e-3,
    lr_warmup_fraction=0.0,
    weight_decay=0.0,
    gradient_clip_norm=1.0,
    order="shuffled",
    layout="auto",
    micro_batch_tokens=8192,
    micro_batch_size=None,
    activation_checkpointing=False,
    validate_every_steps=None,
    checkpoint_every_steps=None,
    checkpoint_every_min=None,
)


def make_backbone(folder: Path, *, loaded: bool = True, max_length: int = 512) -> LlavaBackbone:
    """The untrained model behind the backbone contract."""
    backbone = LlavaBackbone(checkpoint=str(folder), prompt=PROMPT, source="a test model", max_length=max_length)
    if loaded:
        backbone.load()
    return backbone


def to_dtype(backbone: LlavaBackbone, dtype: torch.dtype) -> None:
    """Weights in a dtype, and in float64 the decoder's norms too: transformers rounds them to float32 whatever the weights are, where a
    last digit of float64 decides which way, and the difference is far above what tests in float64 allow.
    """
    backbone.module.to(dtype)
    if dtype == torch.float64:
        for module in backbone.module.modules():
            if type(module).__name__.endswith("RMSNorm"):
                norm: Any = module
                norm.forward = partial(rms_norm, normalized_shape=norm.weight.shape, weight=norm.weight, eps=norm.variance_epsilon)


def make_pairs(number: int, split: str = "train") -> tuple[Example, ...]:
    """Phantom pairs of one fact changed."""
    source = PhantomPairs(
        data_class="public", num_pairs=number, num_validation_pairs=number, own_wrong_fraction=0.0, starting_model="", on_bad_record="error"
    )
    return source.read().examples[split]


def make_questions(number: int) -> tuple[Question, ...]:
    """Phantom questions, with prompts of different lengths."""
    questions = PhantomQuestions(split="test", num_questions=number, data_class="public").read().questions
    longer = [
        replace(question, turns=(Turn("human", question.turns[0].text + " Please." * place),)) for place, question in enumerate(questions)
    ]
    return tuple(longer)


def encoded(examples: tuple[Example, ...], backbone: LlavaBackbone) -> tuple[EncodedExample, ...]:
    """Token ids with everything a loss can ask for: unmatched answers, corrupted pictures, changed tokens."""
    corrupted = partial(corrupted_image, Crop(seed=0, min_area_fraction=0.05, max_area_fraction=0.2))
    return encode_examples(examples, unmatched_partners(examples), backbone.encoder, corrupted=corrupted, with_changes=True)


def collated(examples: Sequence[EncodedExample], views: Iterable[str], pictures: Pictures, layout: Layout | None = None) -> Batch:
    """One micro-batch that is the whole batch, in the plain layout where none is given."""
    layout = layout or PlainLayout()
    return collate(examples, views, global_positions=range(len(examples)), layout=layout, pictures=pictures, draw=lambda _: 0.5)


def picture(number: int) -> PhantomImage:
    """A phantom picture."""
    return PhantomImage("train", number)


def loss_node(name: str) -> dict[str, Any]:
    """A yaml of conf/loss as the driver would resolve it."""
    return copy.deepcopy(compose_loss([f"loss={name}"]).node)


def make_config(model: Path, output_dir: Path, /, **changes: Any) -> dict[str, Any]:
    """A resolved configuration of one small cell; `changes` update keys of groups or, with a `_target_`, replace them."""
    config: dict[str, Any] = {
        "task": {"name": "train"},
        "model": {
            "_target_": "medvlm_dpo.backbones.llava.LlavaBackbone",
            "checkpoint": str(model),
            "prompt": dict(PROMPT),
            "source": "a test model",
            "max_length": 512,
        },
        "adapter": {"_target_": "medvlm_dpo.backbones.adapter.LoraSettings", **vars(LORA)},
        "reference": {"_target_": "medvlm_dpo.reference.StartingReference"},
        "corruption": {
            "_target_": "medvlm_dpo.data.corruption.geometry.Crop",
            "seed": 0,
            "min_area_fraction": 0.05,
            "max_area_fraction": 0.2,
        },
        "loss": loss_node("dpo"),
        "data": {
            "_target_": "medvlm_dpo.data.phantom.source.PhantomPairs",
            "data_class": "public",
            "num_pairs": 8,
            "num_validation_pairs": 4,
            "own_wrong_fraction": 0.0,
            "starting_model": str(model),
            "on_bad_record": "error",
        },
        "evaluation": {
            "_target_": "medvlm_dpo.evaluation.tasks.vqa_task",
            "name": "phantom",
            "questions": {
                "_target_": "medvlm_dpo.data.phantom.source.PhantomQuestions",
                "data_class": "public",
                "split": "test",
                "num_questions": 6,
            },
            "graders": {"exact": {"_target_": "medvlm_dpo.evaluation.graders.exact.grader"}},
        },
        "decoding": {"_target_": "medvlm_dpo.settings.DecodingSettings", "max_new_tokens": 4, "batch_size": 4},
        "trainer": {"_target_": "medvlm_dpo.settings.TrainerSettings", **vars(SETTINGS)},
        "cache": {
            "_target_": "medvlm_dpo.settings.CacheSettings",
            "folder": str(output_dir / "cache"),
            "reference": True,
            "pictures": True,
            "limit_gb": None,
        },
        "logger": {"kind": "none"},
        "paths": {"output_dir": str(output_dir)},
        "launcher": {"n_parallel": 1, "threads": 1},
        "import_folders": [],
        "seed": 0,
        "choices": {"model": "tiny", "loss": "dpo", "data": "phantom", "evaluation": "phantom", "decoding": "greedy"},
        "overrides": [],
    }
    for key, value in changes.items():
        update = isinstance(value, dict) and not {"_target_", "terms"} & value.keys()
        config[key] = {**config[key], **value} if update else value
    return config


def write_user_pairs(folder: Path, answers: Sequence[tuple[str | None, str | None]]) -> dict[str, Any]:
    """A user's folder with one picture a pair; gives the data node that reads it."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    records = []
    for number, (chosen, rejected) in enumerate(answers):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
        record: dict[str, Any] = {"id": f"case_{number}", "image": f"{number}.png"}
        if chosen is not None:
            record["conversations"] = _turns(chosen)
        if rejected is not None:
            record["rejected_conversations"] = _turns(rejected)
        records.append(record)
    (folder / "pairs.json").write_text(json.dumps(records), encoding="utf-8")
    return {
        "_target_": "medvlm_dpo.data.preference_json.PreferenceJson",
        "path": str(folder / "pairs.json"),
        "image_root": str(images),
        "data_class": "public",
        "on_bad_record": "error",
        "validation_fraction": 0.2,
    }


def write_user_questions(folder: Path) -> dict[str, Any]:
    """A user's file of two questions on one CMYK picture, the second without a gold answer; gives the node that leaves bad rows out."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("CMYK", (24, 24), (9, 8, 7, 6)).save(folder / "cmyk.jpg")
    row = {"question_id": 1, "image": "cmyk.jpg", "text": "Is there a lesion?", "gpt4_answer": "yes", "answer_type": "CLOSED"}
    lines = [json.dumps(row), json.dumps({**row, "question_id": 2, "gpt4_answer": ""})]
    (folder / "questions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {
        "_target_": "medvlm_dpo.data.vqa_jsonl.VqaJsonl",
        "path": str(folder / "questions.jsonl"),
        "image_root": str(folder),
        "data_class": "public",
        "on_bad_record": "drop",
    }


def run_training(
    model: Path,
    folder: Path,
    loss: str = "dpo",
    *,
    seed: int = 0,
    pairs: int = 8,
    validation: int = 0,
    dtype: torch.dtype = torch.float32,
    reference: AbstractReference | None = None,
    **changes: Any,
) -> TrainedCell:
    """Trains an adapter on phantom pairs into a folder; `changes` are trainer settings."""
    settings = replace(SETTINGS, **changes)
    backbone = make_backbone(model)
    to_dtype(backbone, dtype)
    objective = build_objective(loss_node(loss), batch_size=settings.batch_size)
    splits = {
        "train": encoded(make_pairs(pairs), backbone),
        "validation": encoded(make_pairs(validation, "validation"), backbone) if validation else (),
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = CellFiles(folder / "checkpoint", folder / "metrics.jsonl", folder / "adapter")
    start = StartingReference()
    return train(
        backbone,
        objective,
        reference if reference is not None else start,
        splits,
        start=start,
        layout=layout_of_run(backbone, settings),
        adapter=LORA,
        settings=settings,
        seed=seed,
        files=files,
    )


def adapter_of(folder: Path) -> dict[str, Tensor]:
    """The trained adapter's tensors."""
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of the metrics file without what a clock decides."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("time", "train/examples_per_second")} for line in lines]


def _turns(answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": "<image>\nIs there a lesion?"}, {"from": "gpt", "value": answer}]
