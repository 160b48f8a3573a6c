"""The two built-in models: tokenizer, architecture and prompt, small enough to train on two CPU cores."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from medvlm_dpo.data.phantom.anatomy import IMAGE_SIDE, scene_of
from medvlm_dpo.data.phantom.draws import stream
from medvlm_dpo.data.phantom.questions import every_question
from medvlm_dpo.errors import InputError, nearest
from medvlm_dpo.files import write_bytes_atomic

MODELS_FOLDER = Path(__file__).parent / "models"
PATCH_SIDE = 8
IMAGE_TOKENS = (IMAGE_SIDE // PATCH_SIDE) ** 2
VOCABULARY_SIZE = 576
CONTEXT = 1024
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<image>")
PAD, BOS, EOS, IMAGE = range(4)


@dataclass(frozen=True)
class Recipe:
    """What tells the two models apart.

    Args:
        family: the language model's kind, for the README.
        first_ids: ids before all text.
        before, after: text around the image span; `after` holds `{question}`.
        answer: the answer's text; holds `{answer}`. The end-of-sequence token follows.
    """

    family: str
    first_ids: tuple[int, ...]
    before: str
    after: str
    answer: str
    text_config: PretrainedConfig


_TEXT_SIZES = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
    "initializer_range": 0.05,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}

RECIPES: Mapping[str, Recipe] = {
    "phantom_llava": Recipe(
        family="Mistral",
        first_ids=(BOS,),
        before="[INST] ",
        after="\n{question} [/INST]",
        answer=" {answer}",
        text_config=MistralConfig(**_TEXT_SIZES, sliding_window=None),
    ),
    "phantom_huatuo": Recipe(
        family="Qwen2",
        first_ids=(),
        before="<|user|>\n",
        after="\n{question}\n<|assistant|>\n",
        answer="{answer}",
        text_config=Qwen2Config(**_TEXT_SIZES, use_sliding_window=False),
    ),
}


def recipe_of(model: str) -> Recipe:
    """The recipe of a built-in model.

    Raises:
        InputError: no built-in model has this name.
    """
    if model not in RECIPES:
        raise InputError(f"There is no built-in model {model!r}{nearest(model, tuple(RECIPES))}.")
    return RECIPES[model]


def build_model(model: str) -> LlavaForConditionalGeneration:
    """The untrained network, initialised from torch's global generator."""
    vision = CLIPVisionConfig(
        hidden_size=80,
        intermediate_size=240,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIDE,
        patch_size=PATCH_SIDE,
        projection_dim=80,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=recipe_of(model).text_config,
        image_token_index=IMAGE,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    network = LlavaForConditionalGeneration(config)
    network.generation_config = GenerationConfig(pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS)
    return network


def train_tokenizer(model: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE over phantom text: every UTF-8 text can be encoded, phantom words are mostly one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(recipe_of(model)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[PAD],
        bos_token=SPECIAL_TOKENS[BOS],
        eos_token=SPECIAL_TOKENS[EOS],
        extra_special_tokens={"image_token": SPECIAL_TOKENS[IMAGE]},
        model_max_length=CONTEXT,
        padding_side="right",
    )


def save_image_settings(folder: Path) -> None:
    """Writes preprocessor_config.json in the layout of a CLIP image processor."""
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIDE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIDE, "width": IMAGE_SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
    }
    write_bytes_atomic(folder / "preprocessor_config.json", (json.dumps(settings, indent=2) + "\n").encode())


def _corpus(recipe: Recipe, num_images: int = 1500) -> Iterator[str]:
    """Text in the model's own format from the split `pretrain`."""
    for index in range(num_images):
        scene = scene_of("pretrain", index)
        yield recipe.before
        for asked in every_question(scene, stream("tokenizer", index)):
            yield from _texts(recipe, asked.text, (asked.answer, *(wrong.answer for wrong in asked.wrong)))


def _texts(recipe: Recipe, question: str, answers: Iterable[str]) -> Iterator[str]:
    yield recipe.after.format(question=question)
    for answer in answers:
        yield recipe.answer.format(answer=answer)
