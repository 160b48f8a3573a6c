import errno
import functools
import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from medvlm_dpo.cache import blocks
from medvlm_dpo.cache.blocks import Array, BlockError, map_block, read_block, read_record, write_block

IDENTITY = "ab" * 32
DTYPES = ["bool", "int8", "uint16", "<i4", ">i4", "int64", "float16", "float32", "float64", "complex64"]
EXAMPLE = {"a": np.arange(5, dtype=np.float32), "leer": np.zeros((0, 3), np.uint16), "b": np.array(7, np.int64), "": np.ones((2, 3), bool)}

keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
stored = st.dictionaries(
    keys,
    st.sampled_from(DTYPES).flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))),
    max_size=5,
)


def write(folder: Path, content: dict[str, Array] = EXAMPLE, *, identity: str = IDENTITY) -> Path:
    path = folder / "one.block"
    write_block(path, content, identity=identity, temporary=folder / "one.tmp")
    return path


@functools.cache
def intact_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write(Path(folder)).read_bytes()


def read_all(path: Path) -> dict[str, Array]:
    block = read_block(path, identity=IDENTITY)
    mapped = map_block(block)
    return {key: read_record(block, mapped, key, verify=True) for key in block.records}


def rewritten(path: Path, **changes: object) -> None:
    """The same file with another header, its length and hash in order."""
    old = path.read_bytes()
    magic, version, length = blocks._PREFIX.unpack(old[: blocks._PREFIX.size])
    header = json.loads(old[blocks._PREFIX.size : blocks._PREFIX.size + length])
    start = blocks._aligned(blocks._PREFIX.size + length + 32)
    text = json.dumps({**header, **changes}).encode()
    prefix = blocks._PREFIX.pack(magic, version, len(text)) + text + hashlib.sha256(text).digest()
    path.write_bytes(prefix.ljust(blocks._aligned(len(prefix)), b"\0") + old[start:])


def assert_same(found: Array, expected: Array) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()  # to the bit, so that NaN equals itself


@given(stored)
@settings(max_examples=100, deadline=None)
def test_arrays_come_back_to_the_bit(content: dict[str, Array]):
    with tempfile.TemporaryDirectory() as folder:
        found = read_all(write(Path(folder), content))
    assert list(found) == list(content)
    for key, array in content.items():
        assert_same(found[key], array)


def test_an_array_in_any_memory_order_comes_back(tmp_path: Path):
    array = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    content = {"columns": np.asfortranarray(array), "every other": array[:, ::2], "backwards": array[::-1]}
    found = read_all(write(tmp_path, content))
    for key, expected in content.items():
        assert_same(found[key], expected)


def test_arrays_are_aligned_read_only_and_mapped(tmp_path: Path):
    for key, array in read_all(write(tmp_path)).items():
        assert array.ctypes.data % 64 == 0, key
        assert not array.flags.owndata
        with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
            array[...] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_no_changed_byte_gives_a_wrong_array(data: st.DataObject):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.block"
        content = bytearray(intact_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        try:
            found = read_all(path)
        except BlockError:
            return
        for key, array in EXAMPLE.items():  # the byte was padding
            assert_same(found[key], array)


def test_every_byte_of_an_array_is_covered(tmp_path: Path):
    path = write(tmp_path, {"a": np.arange(64, dtype=np.uint8)})
    content = path.read_bytes()
    for position in range(len(content) - 64, len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(BlockError, match="checksum"):
            read_all(path)


def test_no_cut_or_lengthened_file_is_read(tmp_path: Path):
    path = write(tmp_path)
    content = path.read_bytes()
    for length in reversed(range(len(content))):
        os.truncate(path, length)
        with pytest.raises(BlockError):
            read_block(path, identity=IDENTITY)
    path.write_bytes(content + b"\0")
    with pytest.raises(BlockError, match="where its header says"):
        read_block(path, identity=IDENTITY)


def test_a_file_cut_after_its_header_was_read_is_not_touched(tmp_path: Path):
    path = write(tmp_path)
    block = read_block(path, identity=IDENTITY)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BlockError, match="where its header says"):
        map_block(block)
    path.write_bytes(b"")
    with pytest.raises(BlockError, match="empty"):
        map_block(block)
    path.unlink()
    with pytest.raises(BlockError, match="No such file"):
        map_block(block)


def test_another_identity_format_or_file_says_which(tmp_path: Path):
    path = write(tmp_path)
    with pytest.raises(BlockError, match="another model"):
        read_block(path, identity="cd" * 32)
    content = path.read_bytes()
    path.write_bytes(content[:8] + (2).to_bytes(4, "little") + content[12:])
    with pytest.raises(BlockError, match="format version is 2; this program reads 1"):
        read_block(path, identity=IDENTITY)
    path.write_bytes(b"PK" + content[2:])
    with pytest.raises(BlockError, match="not a block file"):
        read_block(path, identity=IDENTITY)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": 2},
        {"records": []},
        {"records": {"a": {}}},
        {"records": {"a": {"dtype": "|O", "shape": [1], "offset": 0, "crc32": 0}}},
        {"records": {"a": {"dtype": "no dtype", "shape": [1], "offset": 0, "crc32": 0}}},
        {"records": {"a": {"dtype": "|u1", "shape": [-1], "offset": 0, "crc32": 0}}},
        {"records": {"a": {"dtype": "|u1", "shape": [1], "offset": -64, "crc32": 0}}},
    ],
)
def test_a_header_of_another_hand_is_not_believed(tmp_path: Path, changes: dict[str, object]):
    path = write(tmp_path)
    rewritten(path)
    assert_same(read_all(path)["a"], EXAMPLE["a"])  # the rewriting itself does no harm
    rewritten(path, **changes)
    with pytest.raises(BlockError, match="cannot be understood"):
        read_block(path, identity=IDENTITY)


@pytest.mark.parametrize("array", [np.array([{}]), np.array(["a"]), np.array([1], "datetime64[s]"), np.zeros(1, [("a", "i4")])])
def test_only_numbers_are_stored(tmp_path: Path, array: Array):
    with pytest.raises(ValueError, match="cannot be stored; expected numbers"):
        write(tmp_path, {"a": array})
    assert list(tmp_path.iterdir()) == []


def test_a_refused_or_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes: list[tuple[int, int]] = []

    def refuse(num_bytes: int) -> None:
        sizes.append((num_bytes, (tmp_path / "one.tmp").stat().st_size))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_block(tmp_path / "one.block", EXAMPLE, identity=IDENTITY, temporary=tmp_path / "one.tmp", check_space=refuse)
    assert list(tmp_path.iterdir()) == []
    assert sizes == [(write(tmp_path).stat().st_size,) * 2]  # whoever measures the folder meanwhile counts the whole block


def test_too_many_open_files_is_not_the_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path)
    block = read_block(path, identity=IDENTITY)

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(np, "memmap", fails)
    with pytest.raises(OSError, match="Too many open files"):
        map_block(block)
    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(OSError, match="Too many open files"):
        read_block(path, identity=IDENTITY)
