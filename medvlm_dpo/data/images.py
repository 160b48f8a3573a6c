"""Pictures in files: refused or converted to 8-bit RGB, the same way when they are checked and when they are used.

Conversions:

* 16-bit grayscale: linear from the full range 0..65535. (16-bit colour is reduced to its high bytes by Pillow, which is linear too.)
* grayscale, palette, CMYK and other colour spaces: as Pillow converts them; colour profiles are ignored.
* alpha: composited over black, the background of a radiograph; without this, hidden colours would show.
* several frames: the first one.
* EXIF orientation: applied, because whoever described the picture saw it upright, and left and right matter.

Refused: what Pillow cannot read or decode to the end, 32-bit integer and floating-point pixels outside PNG and PGM (no
range is agreed on), and pictures with more than `MAX_PIXELS` pixels, whose header alone is read.
"""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from medvlm_dpo.data.records import Flaw
from medvlm_dpo.errors import InputError
from medvlm_dpo.files import sha256_of_bytes

# Twice a 24-megapixel mammogram, rounded up: 64 megapixels are 192 MB once decoded, and models see less than one. The
# limit lies below Pillow's own (89 megapixels), so whatever Pillow calls a decompression bomb is refused here as well.
MAX_PIXELS = 64_000_000
# Eight bytes for each of these pixels: no honest picture of that size needs more.
MAX_BYTES = 8 * MAX_PIXELS
# Only decoders that live inside Pillow: an EPS file would start a Ghostscript process.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
# Part of every stored verdict: raise it when a rule of this file changes.
CHECK_NAME = "image-2"

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# How a conversion is told, by its short name.
CONVERSIONS = {
    "16-bit": "16-bit grayscale, converted linearly from 0..65535 to 8 bits",
    "grayscale": "grayscale, repeated to three channels",
    "CMYK": "CMYK, converted to RGB",
    "palette": "in palette colours, converted to RGB",
    "colour space": "in another colour space (YCbCr, LAB or HSV), converted to RGB",
    "alpha": "with an alpha channel, composited over black",
    "frames": "animated or with several pages; the first frame is used",
    "orientation": "turned upright as their EXIF orientation says",
}


class Verdict(NamedTuple):
    """What checking one picture gave: a flaw, or what is known of the picture.

    Args:
        conversions: names of the conversions it needs.
        size: width and height of the upright picture in pixels; (0, 0) where it is flawed.
        is_black: no pixel of it is anything but black; a mask that marks nothing.
    """

    flaw: Flaw | None
    conversions: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)
    is_black: bool = False


class Decoded(NamedTuple):
    """A picture in RGB and the names of the conversions that made it so."""

    image: Image.Image
    conversions: tuple[str, ...]


class BrokenImageError(Exception):
    """A picture that cannot be used; `flaw` says why."""

    def __init__(self, flaw: Flaw) -> None:
        super().__init__(flaw.reason)
        self.flaw = flaw


@dataclass(frozen=True)
class FileImage:
    """A checked picture in a file; an `ImageSource`.

    Args:
        path: the file.
        key: its name for messages and tables: relative to the image root, or a piece of its hash for credentialed data.
        sha256: hash of the file's bytes when it was checked; `load` refuses other bytes.
    """

    path: Path
    key: str
    sha256: str

    def load(self) -> Image.Image:
        """The picture in mode RGB.

        Raises:
            InputError: the file has changed, disappeared or broken since it was checked.
        """
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise InputError(f"image {self.key}: it was there when the data were checked, now: {error.strerror}; start again") from None
        if sha256_of_bytes(content) != self.sha256:
            raise InputError(f"image {self.key}: its content has changed since the data were checked; start again")
        try:
            return decode(io.BytesIO(content)).image
        except BrokenImageError as error:
            raise InputError(f"image {self.key}: {error.flaw.reason}") from None

    def content_hash(self) -> str:
        """Hexadecimal SHA-256 of the file's bytes."""
        return self.sha256


def check(path: Path) -> Verdict:
    """Decodes a picture to its last row; says what is wrong with it, or which conversions it needs and how large it is.

    Raises:
        OSError: the file cannot be opened.
    """
    with path.open("rb") as stream:
        try:
            image, conversions = decode(stream)
            return Verdict(None, conversions, image.size, image.getbbox() is None)
        except BrokenImageError as error:
            return Verdict(error.flaw)


def decode(stream: BinaryIO) -> Decoded:
    """The picture in a stream as 8-bit RGB.

    Raises:
        BrokenImageError: it is no picture, too large, cut off, or has pixels without an agreed range.
    """
    conversions = ["frames"] if _has_frames(_open(stream)) else []
    image = _open(stream)
    try:
        image.load()
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception as error:  # decoders raise whatever they stumble over: OSError, SyntaxError, struct.error, zlib.error, ...
        raise BrokenImageError(Flaw("the image cannot be decoded to its end; it is cut off or damaged", str(error))) from None
    converted, names = _to_rgb(image)
    conversions += names
    if orientation in _UPRIGHT:
        converted = converted.transpose(_UPRIGHT[orientation])
        conversions.append("orientation")
    return Decoded(converted, tuple(conversions))


def quiet_pillow() -> warnings.catch_warnings:
    """A context in which warnings are silent: what Pillow warns about is refused or told by our own verdicts.

    Not for threads: enter it around them, not in them.
    """
    return warnings.catch_warnings(action="ignore")


def _open(stream: BinaryIO) -> Image.Image:
    """Reads the header only."""
    size = stream.seek(0, io.SEEK_END)
    if size > MAX_BYTES:
        raise BrokenImageError(Flaw(f"the image file has {size:,} bytes, more than the {MAX_BYTES:,} allowed; make it smaller"))
    stream.seek(0)
    try:
        image = Image.open(stream, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        number = str(error).partition(" exceeds")[0]
        raise BrokenImageError(Flaw(f"the image has more than the {MAX_PIXELS:,} pixels allowed; make it smaller", number)) from None
    except UnidentifiedImageError:
        stream.seek(0)
        raise BrokenImageError(_unknown_format(stream.read(1024))) from None
    except Exception as error:  # a damaged header; see `decode`
        raise BrokenImageError(Flaw("the image has a damaged header", str(error))) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        size_words = f"{width:,} x {height:,}"
        raise BrokenImageError(Flaw(f"the image has {size_words} pixels, more than the {MAX_PIXELS:,} allowed; make it smaller"))
    return image


def _unknown_format(start: bytes) -> Flaw:
    if not start:
        return Flaw("the image file is empty")
    if start[128:132] == b"DICM":
        return Flaw("the image file is DICOM, which is not read here; export it as PNG with 8 or 16 bits")
    if all(byte >= ord("\t") for byte in start):
        return Flaw("the image file is a text file, not an image")
    return Flaw(f"the image file has no known format; expected one of {', '.join(FORMATS)}")


def _has_frames(probe: Image.Image) -> bool:
    """Whether there is a second frame; `probe` cannot be used afterwards, since looking may leave its decoder in the middle."""
    try:
        probe.seek(1)
    except Exception:  # EOFError where there is none; anything else where it is damaged, and the first one is what counts
        return False
    return True


def _to_rgb(image: Image.Image) -> Decoded:
    names: list[str] = []
    if image.mode.startswith("I") or image.mode == "F":
        image, names = _from_16_bit(image), ["16-bit"]
    elif image.mode in ("P", "PA"):
        names.append("palette")
    elif image.mode in ("1", "L", "LA"):
        names.append("grayscale")
    elif image.mode == "CMYK":
        names.append("CMYK")
    elif image.mode not in ("RGB", "RGBA", "RGBX"):
        names.append("colour space")
    if image.has_transparency_data:
        names.append("alpha")
        with_alpha = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), with_alpha)
    return Decoded(image.convert("RGB"), tuple(names))


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Mode `I;16*`, or `I` where the format defines 0..65535 (PNG and PGM), as `L`; 65535 = 255 * 257."""
    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))):
        kind = "floating-point" if image.mode == "F" else "32-bit integer"
        raise BrokenImageError(Flaw(f"the image has {kind} pixels, whose range is not defined; save it with 8 or 16 bits"))
    wide = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
