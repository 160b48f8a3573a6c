"""The contract between a vision-language model and everything else."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from medvlm_dpo.backbones.adapter import Factors, LoraSettings
from medvlm_dpo.backbones.prompt import PromptEncoder
from medvlm_dpo.vocab import ImageSource, Rows


@runtime_checkable
class PictureFeatures(Protocol):
    """Keeps what the vision tower gave."""

    def features(self, images: Sequence[ImageSource]) -> Tensor | None:
        """Features of the vision tower [image, patch, feature], or None unless all are there."""
        ...


class AbstractBackbone(ABC):
    """A model family. Making one reads settings and tokenizer only; weights are read by `load`.

    Concrete backbones are final: share code by function, not by inheritance.
    """

    encoder: PromptEncoder

    @abstractmethod
    def weight_files(self) -> tuple[Path, ...]:
        """Every file whose content decides what the model computes: weights, configuration, tokenizer, image settings."""

    @abstractmethod
    def load(self) -> None:
        """Reads the weights; a tensor that is missing, unexpected or of another shape is an InputError."""

    @abstractmethod
    def pixels(self, image: ImageSource) -> Float[Tensor, "channel height width"]:
        """One picture as the vision tower wants it."""

    @abstractmethod
    def pictures(self, images: Sequence[ImageSource]) -> Float[Tensor, "image ..."]:
        """Pictures as `hidden_states` and `generate` take them, a line each.

        Pixels [image, channel, height, width], or where a vision cache holds all of them features [image, patch, feature].
        """

    @abstractmethod
    def packing_obstacle(self) -> str | None:
        """Why rows of trees would not give the values of plain rows, in words that follow `layout: plain (`; None where they do."""

    @abstractmethod
    def use_vision_cache(self, cache: PictureFeatures | None) -> None:
        """From now on `pictures` takes features from this cache where it holds them; None: from none.

        They are passed over again once `vision_obstacle` says why.
        """

    @abstractmethod
    def vision_obstacle(self) -> str | None:
        """Why features of the vision tower must not be kept, as the end of a sentence; None when they may."""

    @abstractmethod
    def vision_identity(self) -> dict[str, Any]:
        """JSON values that the tower's features of a picture depend on. Reads all weights of the tower."""

    @abstractmethod
    def tower_features(self, images: Sequence[ImageSource]) -> Float[Tensor, "image patch feature"]:
        """Features of the vision tower before the projector, without gradient."""

    @abstractmethod
    def checkpoint_activations(self) -> None:
        """From now on every decoder layer is recomputed in the backward pass: less memory, 40 to 50 % more work, equal gradients."""

    @abstractmethod
    def hidden_states(self, rows: Rows) -> Float[Tensor, "response_token hidden"]:
        """Last hidden states at the positions that predict the response tokens of `rows`."""

    @abstractmethod
    def head(self, hidden: Float[Tensor, "token hidden"]) -> Float[Tensor, "token vocab"]:
        """Logits of hidden states."""

    @abstractmethod
    def generate(
        self, prompts: Sequence[Sequence[int]], pictures: Tensor, image_rows: Sequence[int], *, max_new_tokens: int
    ) -> list[list[int]]:
        """Greedy answers to a batch of prompts, as token ids without the end-of-sequence token.

        An answer that was cut at `max_new_tokens` has exactly that many ids; a finished one has fewer.

        Args:
            prompts: ids, one image span each.
            pictures: distinct pictures, from `pictures`.
            image_rows: for every prompt the index of its picture.
            max_new_tokens: longest answer in tokens, its end included.
        """

    @abstractmethod
    def add_adapter(self, settings: LoraSettings, *, seed: int) -> None:
        """Freezes the weights and adds a fresh adapter to the language model."""

    @property
    @abstractmethod
    def has_adapter(self) -> bool:
        """Whether `add_adapter` was called."""

    @abstractmethod
    def adapter_disabled(self) -> AbstractContextManager[None]:
        """Inside it the model is its starting point."""

    @abstractmethod
    def adapter_factors(self) -> Factors:
        """A frozen copy of the adapter as it is now, by layer."""

    @abstractmethod
    def adapter_replaced(self, factors: Factors) -> AbstractContextManager[None]:
        """Inside it the model runs with these factors in place of its adapter."""

    @abstractmethod
    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Trainable tensors by name."""

    @abstractmethod
    def save_adapter(self, folder: Path) -> None:
        """Writes the adapter so that `peft.PeftModel.from_pretrained` can load it."""

    @abstractmethod
    def load_adapter(self, folder: Path) -> None:
        """Reads an adapter written by `save_adapter`."""

    @property
    @abstractmethod
    def module(self) -> torch.nn.Module:
        """The torch module, for the trainer to move and count."""
