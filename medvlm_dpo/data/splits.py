"""Training and validation examples, divided by image, by nothing but the images' content."""

from collections.abc import Sequence

from medvlm_dpo.data.records import SPLITS
from medvlm_dpo.files import sha256_of_bytes
from medvlm_dpo.vocab import Example


def split_by_image(examples: Sequence[Example], validation_fraction: float) -> tuple[dict[str, tuple[Example, ...]], list[str]]:
    """Draws every image into one of the splits by its hash: the same image lands there whatever else is in the file.

    With at least two images both splits have one; with a single image there is no validation split.

    Args:
        examples: in file order, which both splits keep.
        validation_fraction: expected share of the distinct images, in (0, 1).

    Returns:
        Examples by split, and sentences to show.
    """
    draws = {content: _draw(content) for content in sorted({example.image.content_hash() for example in examples})}
    held_out = {content for content, draw in draws.items() if draw < validation_fraction}
    ordered = sorted(draws, key=lambda content: (draws[content], content))
    notes: list[str] = []
    if len(ordered) < 2:
        held_out = set()
        notes.append("all records show the same image, so there is no validation split")
    elif not held_out or len(held_out) == len(ordered):
        held_out = {ordered[0]} if not held_out else set(ordered[:-1])
    validation = tuple(example for example in examples if example.image.content_hash() in held_out)
    train = tuple(example for example in examples if example.image.content_hash() not in held_out)
    return dict(zip(SPLITS, (train, validation), strict=True)), notes


def _draw(content: str) -> float:
    """A number in [0, 1) from an image's hash; hashed again, so that it is independent of any other use of the hash."""
    return int(sha256_of_bytes(f"validation split {content}".encode())[:13], 16) / 16**13
