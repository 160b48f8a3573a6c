"""What every corruption is, and the corrupted picture of an example as an image source of its own."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

import numpy as np
from PIL import Image

from medvlm_dpo.data.corruption.draws import CORRUPTION_VERSION, stream
from medvlm_dpo.errors import InputError
from medvlm_dpo.files import sha256_of_json
from medvlm_dpo.vocab import Example, ImageSource


class Corruption(ABC):
    """One way of making a picture worse. Implementations are frozen dataclasses: their fields are the settings, checked when built."""

    @abstractmethod
    def apply(self, picture: Image.Image, example: Example) -> Image.Image:
        """The corrupted picture: a new one in mode RGB, of the size of the given one.

        Args:
            picture: the example's own picture, mode RGB; it is not changed.
            example: the record it belongs to; its id decides what is drawn.
        """

    def lacks(self, example: Example) -> str | None:
        """What a record misses for this corruption, as the end of a sentence that begins with the record: `has no ...; set ...`.

        Returns:
            None where nothing is missing.
        """
        del example
        return None

    def stand_in(self, example: Example) -> ImageSource | None:
        """A picture that exists already and is shown as it is, such as the record's own worse one; None where one has to be made."""
        del example
        return None

    def ingredients(self, example: Example) -> list[object]:
        """What of the record, besides its picture, decides the pixels: JSON values."""
        del example
        return []


@dataclass(frozen=True)
class DrawnCorruption(Corruption):
    """A corruption with chance in it.

    Args:
        seed: of the draws, together with the example's id; independent of the cell's seed, so that seeds share reference log-probabilities.
    """

    seed: int

    def random(self, example: Example) -> np.random.Generator:
        """The draws for one example: always the same ones, whatever process asks and whatever was drawn before."""
        return stream(type(self).__name__, self.seed, example.id)

    def ingredients(self, example: Example) -> list[object]:
        """The example's id: two examples with one picture get different draws."""
        return [example.id]


@dataclass(frozen=True)
class CorruptedImage:
    """The corrupted picture of an example, made when it is loaded; an `ImageSource`."""

    corruption: Corruption
    example: Example

    @property
    def key(self) -> str:
        """The key of the example's own picture, the corruption's name, and a piece of the hash."""
        return f"{self.example.image.key} {type(self.corruption).__name__} {self.content_hash()[:16]}"

    def load(self) -> Image.Image:
        """The corrupted picture in mode RGB."""
        return self.corruption.apply(self.example.image.load(), self.example)

    def content_hash(self) -> str:
        """Hash of the recipe: the example's own picture, the corruption with its settings, and what else decides the pixels."""
        settings = {field.name: getattr(self.corruption, field.name) for field in fields(self.corruption)}  # pyright: ignore[reportArgumentType]
        name, image = type(self.corruption).__name__, self.example.image.content_hash()
        return sha256_of_json(["corruption", CORRUPTION_VERSION, name, settings, image, self.corruption.ingredients(self.example)])


def corrupted_image(corruption: Corruption, example: Example) -> ImageSource:
    """What is shown instead of the example's own picture.

    Where the corruption leaves a record's picture as it is, that is the example's own source, so that both views share one pass.

    Raises:
        InputError: the record misses what the corruption needs.
    """
    lacking = corruption.lacks(example)
    if lacking is not None:
        raise InputError(f"corruption: record {example.id} {lacking}")
    return corruption.stand_in(example) or CorruptedImage(corruption, example)
