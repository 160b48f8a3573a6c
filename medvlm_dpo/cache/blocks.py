"""One immutable block file: named arrays behind a header that says everything about them.

    magic, format version, length of the header | header: JSON | SHA-256 of the header | raw data, every array 64-byte aligned

The header carries the hash of the identity that the arrays depend on, and of every array its dtype, shape, place and CRC-32.
"""

import errno
import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Bytes = NDArray[np.uint8]

MAGIC = b"medvlmbk"
FORMAT_VERSION = 1
_PREFIX = struct.Struct("<8sIQ")  # magic, format version, bytes of the header
_DIGEST_BYTES = hashlib.sha256().digest_size
_ALIGNMENT = 64
_OWN_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # the fault of this process, not of the file
_NUMBER_KINDS = "biufc"  # bool, integers, floats, complex: what raw bytes and a dtype describe in full


class BlockError(Exception):
    """A block file that cannot be used, with the reason in a few words."""


@dataclass(frozen=True, slots=True)
class Record:
    """Where one array lies in its block, `offset` counted from the start of the data."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    crc32: int

    @property
    def end(self) -> int:
        """The first byte behind the array, counted like `offset`."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """What the header of an intact block says.

    Args:
        path: of the file.
        records: by key.
        data_start: the first byte of the data in the file.
        modified_ns: time of the file's last change, nanoseconds.
    """

    path: Path
    records: Mapping[str, Record]
    data_start: int
    modified_ns: int

    @property
    def num_bytes(self) -> int:
        """Size of the whole file."""
        return self.data_start + max((record.end for record in self.records.values()), default=0)


def write_block(
    path: Path, arrays: Mapping[str, Array], *, identity: str, temporary: Path, check_space: Callable[[int], None] | None = None
) -> None:
    """Writes arrays as a block that appears whole or not at all. File permissions follow the umask.

    Args:
        path: of the block; nothing stands there yet.
        arrays: by key; numbers or booleans of any shape.
        identity: hash of what the arrays depend on.
        temporary: where the block grows, in the same folder; removed when anything fails.
        check_space: called with the size of the block once the file has it and before data is written; may raise.

    Raises:
        ValueError: a dtype that is no number.
        OSError: the file cannot be written.
    """
    header, records = _header(arrays, identity)
    block = Block(path, records, _aligned(len(header)), 0)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as stream:
            os.ftruncate(stream.fileno(), block.num_bytes)  # from here on, other processes count the whole block
            if check_space is not None:
                check_space(block.num_bytes)
            stream.write(header)
            for key, record in records.items():
                stream.seek(block.data_start + record.offset)
                stream.write(_bytes_of(arrays[key]).data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_block(path: Path, *, identity: str) -> Block:
    """Reads the header of a block, not its data.

    Raises:
        BlockError: the file cannot be read, is no block of this format and identity, or is not whole.
    """
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            header = _checked_header(stream, status.st_size)
            data_start = _aligned(stream.tell())
    except OSError as error:
        raise _unreadable(error) from error
    block = Block(path, _records(header, identity), data_start, status.st_mtime_ns)
    if block.num_bytes != status.st_size:
        raise BlockError(f"it has {status.st_size} bytes where its header says {block.num_bytes}")
    return block


def map_block(block: Block) -> Bytes:
    """The bytes of a block as a read-only memory map.

    Raises:
        BlockError: the file is gone, cannot be read, or has changed its size since its header was read.
    """
    try:
        mapped = np.memmap(block.path, dtype=np.uint8, mode="r").view(np.ndarray)
    except OSError as error:
        raise _unreadable(error) from error
    except ValueError as error:
        raise BlockError("it is empty") from error
    if mapped.size != block.num_bytes:  # reading behind the end of a mapped file kills the process
        raise BlockError(f"it has {mapped.size} bytes where its header says {block.num_bytes}")
    return mapped


def read_record(block: Block, mapped: Bytes, key: str, *, verify: bool) -> Array:
    """One array of a block as a read-only view of its memory map.

    Args:
        block: the block.
        mapped: its bytes, from `map_block`.
        key: one of `block.records`.
        verify: whether to read all bytes of the array and compare their checksum.

    Raises:
        BlockError: the checksum differs.
    """
    record = block.records[key]
    raw = mapped[block.data_start + record.offset : block.data_start + record.end]
    if verify and zlib.crc32(raw.data) != record.crc32:
        raise BlockError("the checksum of an array differs")
    return raw.view(record.dtype).reshape(record.shape)


def _bytes_of(array: Array) -> Bytes:
    return np.asarray(array, order="C").reshape(-1).view(np.uint8)


def _unreadable(error: OSError) -> BlockError:
    if error.errno in _OWN_LIMITS:
        raise error
    return BlockError(f"it cannot be read ({error.strerror})")


def _aligned(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT


def _header(arrays: Mapping[str, Array], identity: str) -> tuple[bytes, dict[str, Record]]:
    """All bytes before the data, and where each array will lie."""
    records: dict[str, Record] = {}
    offset = 0
    for key, array in arrays.items():
        if array.dtype.kind not in _NUMBER_KINDS:
            raise ValueError(f"an array of dtype {array.dtype} cannot be stored; expected numbers or booleans")
        records[key] = Record(array.dtype, array.shape, offset, zlib.crc32(_bytes_of(array).data))
        offset = _aligned(records[key].end)
    described = {
        key: {"dtype": record.dtype.str, "shape": record.shape, "offset": record.offset, "crc32": record.crc32}
        for key, record in records.items()
    }
    header = json.dumps({"schema_version": FORMAT_VERSION, "identity": identity, "records": described}).encode()
    return _PREFIX.pack(MAGIC, FORMAT_VERSION, len(header)) + header + hashlib.sha256(header).digest(), records


def _checked_header(stream: BinaryIO, num_bytes: int) -> bytes:
    """The JSON text of a header whose hash agrees; leaves the stream behind the hash."""
    prefix = stream.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:
        raise BlockError("it is too short for a header")
    magic, version, length = _PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise BlockError("it is not a block file")
    if version != FORMAT_VERSION:
        raise BlockError(f"its format version is {version}; this program reads {FORMAT_VERSION}")
    if _PREFIX.size + length + _DIGEST_BYTES > num_bytes:
        raise BlockError("its header is cut off")
    header = stream.read(length)
    if hashlib.sha256(header).digest() != stream.read(_DIGEST_BYTES):
        raise BlockError("its header is damaged")
    return header


def _records(header: bytes, identity: str) -> dict[str, Record]:
    """The arrays a header describes, in their order."""
    try:
        content = json.loads(header)
        version, found, described = content["schema_version"], content["identity"], content["records"]
        records = {
            key: Record(np.dtype(one["dtype"]), tuple(one["shape"]), int(one["offset"]), int(one["crc32"]))
            for key, one in described.items()
        }
        legal = all(one.dtype.kind in _NUMBER_KINDS and min((one.offset, *one.shape)) >= 0 for one in records.values())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BlockError("its header cannot be understood") from error
    if version != FORMAT_VERSION or not legal:
        raise BlockError("its header cannot be understood")
    if found != identity:
        raise BlockError("it was computed by another model or with other settings")
    return records
