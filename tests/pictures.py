"""A picture without content, for tests that need one to exist."""

from typing import NamedTuple

from PIL import Image


class Picture(NamedTuple):
    """A blank picture that is known by its key alone."""

    key: str

    def load(self) -> Image.Image:
        """Two by two black pixels."""
        return Image.new("RGB", (2, 2))

    def content_hash(self) -> str:
        """The key stands for the content."""
        return self.key
