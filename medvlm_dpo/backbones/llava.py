"""The LLaVA family (CLIP tower, MLP projector, any decoder): LLaVA-Med, HuatuoGPT-Vision and the built-in models."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.utils.logging import disable_progress_bar

from medvlm_dpo.backbones import adapter as adapters
from medvlm_dpo.backbones.adapter import LoraSettings
from medvlm_dpo.backbones.base import AbstractBackbone, PictureFeatures
from medvlm_dpo.backbones.decoder import KNOWN_TYPES, checkpoint_layers, packed_states, prepare_decoder
from medvlm_dpo.backbones.greedy import greedy
from medvlm_dpo.backbones.prompt import PromptEncoder, prompt_format
from medvlm_dpo.backbones.vision import projected, tower_features, tower_identity, trained_vision
from medvlm_dpo.errors import InputError
from medvlm_dpo.files import read_json
from medvlm_dpo.vocab import ImageSource, Rows

BUILTIN_MODELS = Path(__file__).resolve().parent.parent / "data" / "phantom" / "models"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NEEDED_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json")


@final
class LlavaBackbone(AbstractBackbone):
    """A `LlavaForConditionalGeneration` checkpoint in the layout of transformers.

    Args:
        checkpoint: a folder, or `builtin:NAME` for a model that ships with this package; None where the user has to get one.
        prompt: keys of `PromptFormat`.
        source: what to download, how large it is and under which licence; shown when there is no checkpoint.
        max_length: longest sequence in tokens, image positions included.
        dtype: of the weights, `float32` or `bfloat16`; None: the checkpoint's own. Adapters are float32 in both.

    Raises:
        InputError: the checkpoint or the dtype cannot be used.
    """

    def __init__(
        self, *, checkpoint: str | None, prompt: Mapping[str, Any], source: str, max_length: int, dtype: str | None = None
    ) -> None:
        if dtype not in (None, *DTYPES):
            raise InputError(f"model.dtype={dtype}: expected {' or '.join(DTYPES)}, or null for the checkpoint's own")
        self._dtype = dtype
        self._folder = checkpoint_folder(checkpoint, source)
        self._config, self._processor, tokenizer = _settings(self._folder)
        self._model: Any = None  # transformers and peft models are loosely typed
        self._adapted: Any = None
        self._vision_cache: PictureFeatures | None = None
        self._encoded: tuple[Tensor, Tensor] | None = None  # the last images and their features; tower and projector never change
        vision: Any = self._config.vision_config
        text: Any = self._config.text_config
        num_patches = (vision.image_size // vision.patch_size) ** 2
        self.encoder = PromptEncoder(
            tokenizer,
            prompt_format(prompt),
            image_token_id=self._config.image_token_id,
            num_image_tokens=num_patches if self._config.vision_feature_select_strategy == "default" else num_patches + 1,
            max_length=min(max_length, text.max_position_embeddings),
        )

    def weight_files(self) -> tuple[Path, ...]:
        """Weights, configuration, tokenizer and image settings of the checkpoint folder."""
        return tuple(sorted(path for path in self._folder.iterdir() if path.suffix in {".safetensors", ".json"}))

    def load(self) -> None:
        """Reads the weights in the dtype asked for; every tensor must fit."""
        disable_progress_bar()  # the log needs no bar for reading a file
        try:
            loaded: Any = LlavaForConditionalGeneration.from_pretrained(
                self._folder,
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                dtype="auto" if self._dtype is None else DTYPES[self._dtype],
                attn_implementation="sdpa",
                ignore_mismatched_sizes=True,  # reported, and refused below with the name of the tensor
            )
        except (OSError, SafetensorError) as error:
            raise InputError(f"model.checkpoint={self._folder}: its weights cannot be read ({error}); get the files again") from error
        model, report = loaded
        wrong = {kind: sorted(map(str, report[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[kind]}
        if wrong:
            shown = "; ".join(f"{len(names)} {kind.replace('_keys', '')} (first: {names[0]})" for kind, names in wrong.items())
            raise InputError(
                f"model.checkpoint={self._folder}: the weights do not fit this architecture: {shown}. Use a copy "
                "in the transformers layout."
            )
        self._model = model.eval().requires_grad_(requires_grad=False)  # eval: dropout off, in the reference too
        prepare_decoder(self._model.model.language_model)

    def pixels(self, image: ImageSource) -> Float[Tensor, "channel height width"]:
        """Padded, resized and normalised as the checkpoint's preprocessor_config.json says."""
        values: Tensor = self._processor(image.load(), return_tensors="pt")["pixel_values"][0]
        return values

    def pictures(self, images: Sequence[ImageSource]) -> Float[Tensor, "image ..."]:
        """Features where a cache holds all of them, else preprocessed pictures in one tensor."""
        kept = None if self._vision_cache is None or self.vision_obstacle() is not None else self._vision_cache.features(images)
        return kept if kept is not None else self._stacked(images)

    def use_vision_cache(self, cache: PictureFeatures | None) -> None:
        """Pictures are asked for there first."""
        self._vision_cache = cache

    def vision_obstacle(self) -> str | None:
        """A weight of the tower or projector that is trained."""
        return trained_vision(self.module)

    def vision_identity(self) -> dict[str, Any]:
        """Weights, configuration, preprocessing and dtype of the tower."""
        return tower_identity(self._model, self._processor)

    def tower_features(self, images: Sequence[ImageSource]) -> Float[Tensor, "image patch feature"]:
        """The layers that the checkpoint's configuration selects."""
        return tower_features(self._model, self._stacked(images).to(self._model.device))

    def checkpoint_activations(self) -> None:
        """Of the language model; the tower has no gradient."""
        checkpoint_layers(self._model.model.language_model)

    def _stacked(self, images: Sequence[ImageSource]) -> Float[Tensor, "image channel height width"]:
        return torch.stack([self.pixels(image) for image in images])

    def packing_obstacle(self) -> str | None:
        """A sliding window counts columns, and in a row of trees other branches stand between a token and its prefix.

        Other kinds of decoder may look at places in a way of their own (blocks, biases by distance), so only those are packed for which the
        equality is tested.
        """
        text: Any = self._config.text_config
        if text.model_type not in KNOWN_TYPES:
            return f"equal values are tested for {', '.join(KNOWN_TYPES)}; the language model is a {text.model_type}"
        window: int | None = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
        reaches = window is None or window >= self.encoder.max_length  # then it hides nothing of a single sequence
        return None if reaches else f"the language model looks back {window} tokens only, fewer than model.max_length"

    def hidden_states(self, rows: Rows) -> Float[Tensor, "response_token hidden"]:
        """Runs the language model once over all rows; each distinct image is encoded once, without gradient."""
        embedded = self._embed(rows.input_ids, self._image_features(rows.pictures)[rows.image_rows])
        decoder = self._model.model.language_model
        if rows.trees is not None:
            return packed_states(decoder, embedded, rows.trees, rows.predictor_rows, rows.predictor_columns)
        output = decoder(inputs_embeds=embedded, attention_mask=rows.padding_mask.long(), use_cache=False)
        return output.last_hidden_state[rows.predictor_rows, rows.predictor_columns]

    def head(self, hidden: Float[Tensor, "token hidden"]) -> Float[Tensor, "token vocab"]:
        """The checkpoint's language-model head."""
        return self._model.lm_head(hidden)

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], pictures: Tensor, image_rows: Sequence[int], *, max_new_tokens: int
    ) -> list[list[int]]:
        """Greedy answers; prompts of different length are padded on the left and masked."""
        width = max(map(len, prompts))
        device = self._model.device
        input_ids = torch.tensor([[self.encoder.end_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        padding_mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        embedded = self._embed(input_ids, self._image_features(pictures.to(device))[list(image_rows)])
        return greedy(
            self._model.model.language_model,
            self._model.lm_head,
            embedded,
            padding_mask,
            max_new_tokens=max_new_tokens,
            end_id=self.encoder.end_id,
        )

    def add_adapter(self, settings: LoraSettings, *, seed: int) -> None:
        """LoRA on the language model; the model stays reachable under the same names."""
        self._adapted = adapters.add_lora(self._model, settings, seed=seed)

    @property
    def has_adapter(self) -> bool:
        """Whether there is one."""
        return self._adapted is not None

    def adapter_disabled(self) -> AbstractContextManager[None]:
        """The starting point, bit for bit; before an adapter was added the model is that anyway."""
        return nullcontext() if self._adapted is None else self._adapted.disable_adapter()

    def adapter_factors(self) -> adapters.Factors:
        """Copies, without gradient."""
        return adapters.adapter_factors(self._adapted)

    def adapter_replaced(self, factors: adapters.Factors) -> AbstractContextManager[None]:
        """Hooks on the adapted layers, the adapter switched off."""
        return adapters.replaced_adapter(self._adapted, factors)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's tensors."""
        return {name: weight for name, weight in self.module.named_parameters() if weight.requires_grad}

    def save_adapter(self, folder: Path) -> None:
        """Writes `adapter_model.safetensors` and `adapter_config.json`."""
        self._adapted.peft_config["default"].base_model_name_or_path = self._folder.name  # a full path would leak the machine
        self._adapted.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's model card template says nothing about this run

    def load_adapter(self, folder: Path) -> None:
        """Every tensor must fit; nothing is skipped."""
        adapters.load_adapter_folder(self._adapted, folder)

    @property
    def module(self) -> torch.nn.Module:
        """The transformers model, or the peft model around it."""
        return self._model if self._adapted is None else self._adapted

    def _image_features(self, pictures: Tensor) -> Float[Tensor, "image patch hidden"]:
        """Features of the images; asked again for the very same tensor (policy, then reference) they are not computed again."""
        if self._encoded is None or self._encoded[0] is not pictures:
            self._encoded = (pictures, self._encode_images(pictures))
        return self._encoded[1]

    def _encode_images(self, pictures: Tensor) -> Float[Tensor, "image patch hidden"]:
        features = pictures if pictures.dim() == 3 else tower_features(self._model, pictures)  # 3: from a vision cache
        return projected(self._model, features)

    def _embed(self, input_ids: Tensor, features: Tensor) -> Float[Tensor, "row column hidden"]:
        embedded = self._model.get_input_embeddings()(input_ids)
        image_positions = (input_ids == self.encoder.image_token_id).unsqueeze(-1)
        return embedded.masked_scatter(image_positions, features.to(embedded.dtype))


def _settings(folder: Path) -> tuple[LlavaConfig, LlavaImageProcessorPil, Any]:
    """Configuration, image settings and tokenizer of a checkpoint folder."""
    try:
        kind = read_json(folder / "config.json").get("model_type")
        if kind != LlavaConfig.model_type:
            raise InputError(
                f"model.checkpoint={folder}: config.json has model_type {kind!r}, expected {LlavaConfig.model_type!r}; "
                "use a copy in the transformers layout"
            )
        return (
            LlavaConfig.from_pretrained(folder, local_files_only=True),
            LlavaImageProcessorPil.from_pretrained(folder, local_files_only=True),
            AutoTokenizer.from_pretrained(folder, local_files_only=True),
        )
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises plain exceptions on a damaged file
        raise InputError(f"model.checkpoint={folder}: {', '.join(NEEDED_FILES)} cannot be read ({error}); get the files again") from error


def checkpoint_folder(checkpoint: str | None, source: str) -> Path:
    """The folder of a checkpoint setting.

    Raises:
        InputError: if it is not set, not there, or lacks a file; says what to get.
    """
    if checkpoint is None:
        raise InputError(
            f"model.checkpoint is not set. This model needs {source}. Download it, then set model.checkpoint=/path/to/its/folder"
        )
    builtin = checkpoint.removeprefix("builtin:")
    folder = BUILTIN_MODELS / builtin if checkpoint.startswith("builtin:") else Path(checkpoint).expanduser()
    if not folder.is_dir():
        raise InputError(f"model.checkpoint={checkpoint}: there is no such folder. This model needs {source}.")
    missing = [name for name in NEEDED_FILES if not (folder / name).is_file()]
    missing += [] if any(folder.glob("*.safetensors")) else ["*.safetensors"]
    if missing:
        raise InputError(
            f"model.checkpoint={checkpoint}: {', '.join(missing)} missing there; "
            f"expected a checkpoint in the transformers layout, with {source}"
        )
    return folder
