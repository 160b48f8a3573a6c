"""Records with pictures of any size, for the tests of corruptions."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from medvlm_dpo.config.instantiate import call_target
from medvlm_dpo.data.corruption.base import Corruption, corrupted_image
from medvlm_dpo.vocab import Example, ImageSource, Turn

CONF = Path(__file__).resolve().parents[3] / "conf" / "corruption"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "none")
SIZES = ((48, 48), (1, 1), (1, 500), (500, 1), (2, 2), (3, 3), (7, 5), (101, 67))


@dataclass(frozen=True)
class MadePicture:
    """A picture made of numbers: a source like any other."""

    name: str
    size: tuple[int, int] = (48, 48)
    grey: bool = False

    @property
    def key(self) -> str:
        return f"made/{self.name}"

    def load(self) -> Image.Image:
        random = np.random.default_rng(sum(map(ord, self.name)))
        shape = (self.size[1], self.size[0], 1 if self.grey else 3)
        return Image.fromarray(np.broadcast_to(random.integers(0, 256, shape, dtype=np.uint8), (*shape[:2], 3)).copy())

    def content_hash(self) -> str:
        return f"{self.name} {self.size} {self.grey}"


@dataclass(frozen=True)
class GivenPicture:
    """A picture whose pixels are given."""

    name: str
    pixels: np.ndarray

    @property
    def key(self) -> str:
        return self.name

    def load(self) -> Image.Image:
        return Image.fromarray(self.pixels)

    def content_hash(self) -> str:
        return self.pixels.tobytes().hex()


def node(name: str, **settings: Any) -> dict[str, Any]:
    return {**yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8")), **settings}


def built(name: str, **settings: Any) -> Corruption:
    """The corruption of a yaml, with some of its settings changed."""
    made = call_target(node(name, **settings))
    assert isinstance(made, Corruption)
    return made


def record(id_: str = "a", image: ImageSource | None = None, *, worse: ImageSource | None = None, **extra: Any) -> Example:
    return Example(id_, image or MadePicture("own"), (Turn("human", "Q"),), "yes", "no", rejected_image=worse, extra=extra)


def complete(id_: str = "a", image: ImageSource | None = None) -> Example:
    """A record that misses nothing, whatever the corruption."""
    return record(id_, image, worse=MadePicture("worse"), lesion_boxes=[[0, 0, 20, 20]], rejected_noised=1)


def pixels_of(source: ImageSource) -> np.ndarray:
    return np.asarray(source.load()).copy()


def digests() -> dict[str, str]:
    """Hash of the pixels of every corruption of one record."""
    return {name: hashlib.sha256(pixels_of(corrupted_image(built(name), complete())).tobytes()).hexdigest() for name in NAMES}
