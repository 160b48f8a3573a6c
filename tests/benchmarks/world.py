"""What both sides of the benchmark share: an untrained LLaVA-type model in a folder, and pairs with answers of a given length.

Everything is made here: weights are drawn, pictures and words come from the built-in data. Nothing is downloaded.
"""

import json
import random
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, MistralConfig, PretrainedConfig, Qwen2Config

from medvlm_dpo.backbones.adapter import LoraSettings
from medvlm_dpo.backbones.llava import LlavaBackbone, checkpoint_folder
from medvlm_dpo.backbones.prompt import PromptEncoder
from medvlm_dpo.config.catalogue import conf_folder
from medvlm_dpo.data.phantom.pairs import PhantomImage
from medvlm_dpo.data.phantom.tiny_models import BOS, EOS, IMAGE, PAD
from medvlm_dpo.data.sampler import step_examples
from medvlm_dpo.settings import TrainerSettings
from medvlm_dpo.vocab import Example, Turn
from tests.benchmarks.shape import Shape

PROMPT = {"begin_of_sequence": True, "image": "<image>\n", "human": "[INST] {text} [/INST]", "gpt": " {text}"}
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTER = "adapter"  # folder of the initial adapter inside the model's folder
SHAPE_FILE = "shape.json"
SEED = 0
TEXT_TOKENS_SPREAD = 5  # prompts differ in length by this much to either side, as real questions do


def lora_settings(shape: Shape) -> LoraSettings:
    """An adapter on every linear layer of the language model."""
    return LoraSettings(rank=shape.lora_rank, alpha=2 * shape.lora_rank, target_modules=LINEAR_LAYERS)


def trainer_settings(shape: Shape, **changes: Any) -> TrainerSettings:
    """Optimiser and schedule of both sides: AdamW, a cosine to 0 over `steps` without warm-up, clipped gradients; else our defaults."""
    defaults = yaml.safe_load((conf_folder() / "trainer" / "default.yaml").read_text(encoding="utf-8"))
    del defaults["_target_"]
    settings = {
        "max_steps": shape.steps,
        "batch_size": shape.batch_size,
        "learning_rate": 1e-3,
        "lr_warmup_fraction": 0.0,
        "checkpoint_every_min": None,
    }
    return TrainerSettings(**{**defaults, **settings, **changes})


def text_config(shape: Shape) -> PretrainedConfig:
    """A language model of the shape's family."""
    return {"mistral": MistralConfig, "qwen2": Qwen2Config}[shape.family](
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=4096,
        sliding_window=None,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def vision_config(shape: Shape) -> CLIPVisionConfig:
    """A small tower of CLIP's kind with as many patches as CLIP ViT-L/14-336."""
    return CLIPVisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=4 * shape.vision_hidden,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=max(1, shape.vision_hidden // 64),
        image_size=shape.image_side,
        patch_size=shape.patch_side,
    )


def llava_config(text: PretrainedConfig, vision: CLIPVisionConfig, *, image_tokens: int) -> LlavaConfig:
    """Both joined as LLaVA joins them: patch features of the last layer but one, an MLP projector."""
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=image_tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def write_model(folder: Path, shape: Shape) -> None:
    """Writes model, tokenizer, image settings, the initial adapter and the shape itself."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    LlavaForConditionalGeneration(llava_config(text_config(shape), vision_config(shape), image_tokens=shape.image_tokens)).save_pretrained(
        folder
    )
    write_surroundings(folder, shape.image_side)
    (folder / SHAPE_FILE).write_text(json.dumps(asdict(shape)), encoding="utf-8")
    model = backbone(folder)
    model.load()
    model.add_adapter(lora_settings(shape), seed=SEED)
    model.save_adapter(folder / ADAPTER)


def write_surroundings(folder: Path, image_side: int) -> None:
    """Tokenizer of the built-in model, whose ids are far fewer than the rows of the head, and CLIP's image settings."""
    builtin = checkpoint_folder("builtin:phantom_llava", "")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((builtin / name).read_bytes())
    settings = json.loads((builtin / "preprocessor_config.json").read_text(encoding="utf-8"))
    settings |= {"size": {"shortest_edge": image_side}, "crop_size": {"height": image_side, "width": image_side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")


def read_shape(folder: Path) -> Shape:
    """The shape a model folder was written with."""
    return Shape(**json.loads((folder / SHAPE_FILE).read_text(encoding="utf-8")))


def backbone(folder: Path) -> LlavaBackbone:
    """Our backbone on the folder, weights not read yet."""
    return LlavaBackbone(checkpoint=str(folder), prompt=PROMPT, source="a model made for the benchmark", max_length=4096)


def make_pairs(shape: Shape, encoder: PromptEncoder) -> tuple[Example, ...]:
    """Pairs of random words: prompts of nearly equal length, answers of exactly `answer_tokens`."""
    words = single_token_words(encoder)
    return tuple(_pair(index, shape, encoder, words) for index in range(shape.num_pairs))


def _pair(index: int, shape: Shape, encoder: PromptEncoder, words: list[str]) -> Example:
    draw = random.Random(f"{SEED}/{index}")
    length = shape.image_tokens + shape.text_tokens + draw.randint(-TEXT_TOKENS_SPREAD, TEXT_TOKENS_SPREAD)
    question = [draw.choice(words) for _ in range(length)]
    empty = len(encoder.prompt_ids([Turn("human", question[0])]))
    chosen, rejected = (" ".join(draw.choice(words) for _ in range(shape.answer_tokens - 1)) for _ in range(2))
    return Example(
        id=f"pair_{index}",
        image=PhantomImage("train", index // shape.questions_per_image),
        turns=(Turn("human", " ".join(question[: max(1, 1 + length - empty)])),),
        chosen=chosen,
        rejected=rejected,
    )


def single_token_words(encoder: PromptEncoder) -> list[str]:
    """Words that are one token each behind a blank."""
    tokens: Mapping[str, int] = encoder.tokenizer.get_vocab()
    words = sorted(token[1:] for token in tokens if token.startswith("Ġ") and token[1:].isascii() and token[1:].isalpha())
    return [word for word in words if len(encoder.answer_ids(word)) == 2]  # the word and the end of sequence


def stream(shape: Shape, examples: tuple[Example, ...]) -> list[Example]:
    """The examples in the order in which our sampler hands them out, for a peer that reads its data from first to last."""
    order = [
        place
        for step in range(shape.steps)
        for place in step_examples(step, num_examples=len(examples), batch_size=shape.batch_size, seed=SEED)
    ]
    return [examples[place] for place in order]


def main() -> None:
    """`python -m tests.benchmarks.world FOLDER SHAPE_AS_JSON`, in a process of its own, which leaves no weights in the parent."""
    write_model(Path(sys.argv[1]), Shape(**json.loads(sys.argv[2])))


if __name__ == "__main__":
    main()
