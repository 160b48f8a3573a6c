import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from medvlm_dpo.data.images import MAX_PIXELS, BrokenImageError, Decoded, FileImage, check, decode, quiet_pillow
from medvlm_dpo.errors import InputError
from medvlm_dpo.files import sha256_of_bytes


def encoded(image: Image.Image, form: str = "PNG", **settings: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **settings)
    return stream.getvalue()


def decoded(content: bytes) -> Decoded:
    return decode(io.BytesIO(content))


def photo(size: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def pixels_equal(one: Image.Image, other: Image.Image) -> bool:
    return (one.mode, one.size, one.tobytes()) == (other.mode, other.size, other.tobytes())


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_rgb_stays_as_it_is() -> None:
    result = decoded(encoded(photo()))
    assert result.conversions == ()
    assert pixels_equal(result.image, photo())


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_is_linear_from_its_full_range(form: str) -> None:
    values = np.array([[0, 257, 128 * 257, 65535], [128, 129, 4095, 65535 - 129]], dtype=np.uint16)
    result = decoded(encoded(Image.fromarray(values), form))
    assert result.conversions == ("16-bit",)
    assert result.image.mode == "RGB"
    expected = np.round(values / 65535 * 255).astype(np.uint8)
    assert np.array_equal(np.asarray(result.image), np.repeat(expected[..., None], 3, axis=2))


def test_16_bit_big_endian_tiff_and_pgm() -> None:
    wide = np.array([[0, 65535, 257 * 7]], dtype=np.uint16)
    pgm = b"P5\n3 1\n65535\n" + wide.astype(">u2").tobytes()
    tiff = encoded(Image.frombytes("I;16B", (3, 1), wide.astype(">u2").tobytes()), "TIFF")
    for content in (pgm, tiff):
        assert np.asarray(decoded(content).image)[0, :, 0].tolist() == [0, 255, 7]


@pytest.mark.parametrize(
    ("mode", "form", "name"),
    [
        ("L", "PNG", "grayscale"),
        ("1", "PNG", "grayscale"),
        ("CMYK", "JPEG", "CMYK"),
        ("P", "PNG", "palette"),
        ("LAB", "TIFF", "colour space"),
    ],
)
def test_other_modes_become_rgb(mode: str, form: str, name: str) -> None:
    image = Image.new("LAB", (16, 16), (120, 128, 128)) if mode == "LAB" else photo().convert(mode)
    result = decoded(encoded(image, form))
    assert result.conversions == (name,)
    assert result.image.mode == "RGB"


def test_grayscale_values_are_repeated() -> None:
    gray = photo().convert("L")
    assert np.array_equal(np.asarray(decoded(encoded(gray)).image)[..., 1], np.asarray(gray))


def test_alpha_is_composited_over_black() -> None:
    image = Image.new("RGBA", (2, 1), (200, 100, 50, 0))
    image.putpixel((1, 0), (200, 100, 50, 255))
    result = decoded(encoded(image))
    assert result.conversions == ("alpha",)
    assert np.asarray(result.image)[0].tolist() == [[0, 0, 0], [200, 100, 50]]


def test_a_transparent_palette_entry_is_black_too() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    result = decoded(encoded(image, transparency=b"\x00\xff"))
    assert set(result.conversions) == {"palette", "alpha"}
    assert np.asarray(result.image)[0].tolist() == [[0, 0, 0], [40, 50, 60]]


@pytest.mark.parametrize("form", ["GIF", "TIFF", "PNG"])
def test_the_first_frame_is_used(form: str) -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    result = decoded(encoded(first, form, save_all=True, append_images=[second]))
    assert "frames" in result.conversions
    assert result.image.getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """Pillow's own transposition is the oracle; the picture is lossless and has no symmetry."""
    image = photo().crop((0, 0, 30, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(image, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    result = decoded(content)
    assert pixels_equal(result.image, expected)
    assert result.conversions == (() if orientation == 1 else ("orientation",))


@pytest.mark.parametrize("missing", [1, 2, 100, 1000])
def test_a_cut_jpeg_is_refused(missing: int) -> None:
    with pytest.raises(BrokenImageError, match="cannot be decoded to its end"):
        decoded(encoded(photo(), "JPEG")[:-missing])


def test_a_cut_png_is_refused() -> None:
    with pytest.raises(BrokenImageError, match="cannot be decoded to its end"):
        decoded(encoded(photo())[:2000])


@pytest.mark.parametrize("content", [b"This is a text file.\n", b"<html>\n</html>", "Bericht: unauffällig".encode()])
def test_a_text_file_named_png_is_refused(content: bytes) -> None:
    with pytest.raises(BrokenImageError, match="is a text file, not an image"):
        decoded(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\0" * 128 + b"DICM" + b"\0" * 100, "is DICOM"),
        (b"\0\1\2\3" * 50, "no known format; expected one of JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is a text file"),  # Pillow would start Ghostscript
        (b"\x89PNG\r\n\x1a\n\0\0", "header|no known format"),
    ],
)
def test_other_files_are_refused(content: bytes, reason: str) -> None:
    with pytest.raises(BrokenImageError, match=reason):
        decoded(content)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_range_are_refused(mode: str) -> None:
    with pytest.raises(BrokenImageError, match="whose range is not defined; save it with 8 or 16 bits"):
        decoded(encoded(Image.new(mode, (4, 4), 7), "TIFF"))


@pytest.mark.parametrize("side", [30_000, 10_000, 8_001])
def test_a_huge_picture_is_refused_before_it_is_decoded(side: int) -> None:
    """The file holds no pixels at all, so only its header can have been read. Pillow raises at 30,000 and warns at 10,000."""
    with pytest.raises(BrokenImageError, match=r"more than the 64,000,000( pixels)? allowed; make it smaller"):
        decoded(png_header(side, side))


def test_the_limit_itself_is_allowed() -> None:
    with pytest.raises(BrokenImageError, match="cannot be decoded to its end"):  # past the size check, and there are no pixels
        decoded(png_header(8_000, MAX_PIXELS // 8_000))


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as stream:
        stream.truncate(10**10)  # a hole on the disk
    verdict = check(path)
    assert verdict.flaw
    assert "10,000,000,000 bytes" in verdict.flaw.reason


def test_a_warning_of_pillow_is_not_shown_to_the_user() -> None:
    with quiet_pillow(), pytest.raises(BrokenImageError, match="10,000 x 10,000 pixels"):
        decoded(png_header(10_000, 10_000))


class TestFileImage:
    def saved(self, tmp_path: Path) -> FileImage:
        path = tmp_path / "x.png"
        content = encoded(photo())
        path.write_bytes(content)
        return FileImage(path, "x.png", sha256_of_bytes(content))

    def test_loads_rgb(self, tmp_path: Path) -> None:
        image = self.saved(tmp_path)
        assert pixels_equal(image.load(), photo())
        assert image.content_hash() == sha256_of_bytes(image.path.read_bytes())

    def test_refuses_changed_content(self, tmp_path: Path) -> None:
        image = self.saved(tmp_path)
        image.path.write_bytes(encoded(photo().rotate(90)))
        with pytest.raises(InputError, match=r"image x\.png: its content has changed since the data were checked"):
            image.load()

    def test_refuses_a_lost_file(self, tmp_path: Path) -> None:
        image = self.saved(tmp_path)
        image.path.unlink()
        with pytest.raises(InputError, match=r"image x\.png: .*No such file"):
            image.load()
