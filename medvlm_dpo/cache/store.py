"""A folder of blocks: arrays by content key that any number of processes read and fill together."""

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medvlm_dpo.cache.blocks import Array, Block, BlockError, Bytes, map_block, read_block, read_record, write_block
from medvlm_dpo.cache.locks import try_lock
from medvlm_dpo.errors import InputError
from medvlm_dpo.files import sha256_of_json, write_json_atomic

_log = logging.getLogger(__name__)

BYTES_PER_GB = 10**9
POLL_S = 0.2  # between two looks at a group that another process computes
MAX_MAPS = 256  # memory maps kept open: each holds a file descriptor, and 1,024 is a usual limit

Make = Callable[[Sequence[str]], Mapping[str, Array]]


class StoreError(InputError):
    """A store that cannot take what it is given: not writable, disk full, or its limit reached. What is in it stays usable."""


class BlockStore:
    """Arrays by content key in immutable block files; any number of processes may read and fill.

    Blocks lie in a subfolder per identity, so what another model or other settings computed is never seen. What cannot be trusted
    (an unknown format, a torn file, another identity) is ignored with one warning in the log.

    Args:
        folder: shared by all identities; made where it is missing.
        identity: JSON values that every array depends on: hash of the weights, dtype, layout, ... Kept in `identity.json` for people.
        limit_gb: 10^9 bytes that all files under `folder`, of every identity and process, may have together; None: no limit.

    Raises:
        StoreError: `folder` is not a folder or cannot be listed.
    """

    writable: bool  # whether `fill` can write; reading works without

    def __init__(self, folder: Path, *, identity: Mapping[str, Any], limit_gb: float | None = None) -> None:
        self._identity = sha256_of_json(dict(identity))
        self._root, self._folder, self._limit_gb = folder, folder / self._identity[:16], limit_gb
        self._index: dict[str, list[Block]] = {}  # by key, the block that serves it at the end
        self._seen: set[str] = set()  # names of block files; they never change, so each is opened once
        self._maps: dict[Path, Bytes] = {}
        self._verified: set[str] = set()
        self.writable = self._prepare(identity)
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a memory map would travel to a worker process as a copy of the file

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def __getitem__(self, key: str) -> Array:
        """A read-only view of a memory map, its checksum verified when the key is read for the first time.

        Raises:
            KeyError: missing, or found torn: then the key counts as missing from now on.
        """
        while blocks := self._index.get(key):
            mapped = self._mapped(block := blocks[-1])
            if mapped is None:
                continue
            try:
                array = read_record(block, mapped, key, verify=key not in self._verified)
            except BlockError as error:
                self._drop(block, [key], error)
            else:
                self._verified.add(key)
                return array
        raise KeyError(key)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of some keys that the store does not hold, in order, each once."""
        return [key for key in dict.fromkeys(keys) if key not in self._index]

    def refresh(self) -> None:
        """Sees the blocks that other processes have written since. Reads headers, no data."""
        try:
            paths = [path for path in self._folder.iterdir() if path.suffix == ".block" and path.name not in self._seen]
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"the folder {self._folder} cannot be listed ({error.strerror}); choose another or mend it") from error
        blocks: list[Block] = []
        for path in paths:
            self._seen.add(path.name)
            try:
                blocks.append(read_block(path, identity=self._identity))
            except BlockError as error:
                _log.warning("ignored the block %s: %s", path.name, error)
        # What serves a key goes on serving it. Of blocks found together the newest does: it may have been made for a torn one.
        for block in sorted(blocks, key=lambda block: block.modified_ns, reverse=True):
            for key in block.records:
                self._index.setdefault(key, []).insert(0, block)

    def fill(self, groups: Sequence[Sequence[str]], make: Make, *, report: Callable[[int, int], None]) -> None:
        """Computes what is missing, one block file a group. Many processes may call it at once with the same groups.

        Each group is then computed by one of them. A process passes over groups that others are at, comes back to them when the free
        ones are done, and takes over from a process that died. Killing it loses the unfinished block only. On a file system that
        cannot lock, a block may be computed twice, and what a killed process left half-written stays.

        Args:
            groups: keys of one block each.
            make: the arrays of exactly the keys it is given, which are one group's missing ones; called in this process.
            report: called after every group that this or another process finishes, with the number of keys present and of all keys.

        Raises:
            StoreError: the folder cannot be written, the disk is full, or the next block would exceed the limit.
            ValueError: `make` returned other keys than it was asked for, or something that is not an array of numbers.
        """
        self.refresh()
        if self.writable:
            self._remove_leftovers()
        keys = dict.fromkeys(key for group in groups for key in group)
        pending = [group for group in groups if self.missing(group)]
        if pending and not self.writable:
            raise StoreError(
                f"the folder {self._folder} cannot be written and lacks {len(self.missing(keys))} of {len(keys)} arrays; "
                "fill it as a user who may write there, or choose another folder"
            )
        while pending:
            self.refresh()
            held = []
            for group in pending:
                if self._settle(group, make):
                    report(len(keys) - len(self.missing(keys)), len(keys))
                else:
                    held.append(group)
            if len(held) == len(pending):
                time.sleep(POLL_S)
            pending = held

    def _settle(self, group: Sequence[str], make: Make) -> bool:
        """Sees to it that one group is in the store, unless another process is at it: then False."""
        if not self.missing(group):
            return True
        name = sha256_of_json(sorted(set(group)))[:16]
        lock = try_lock(self._folder / f"{name}.lock")
        if lock is None:
            return False
        with lock:
            self.refresh()  # another process may have finished it since we last looked
            if asked := self.missing(group):
                if lock.is_exclusive:
                    self._remove_temporary(name)
                self._check_space(0)
                self._write(name, _checked(make(asked), asked))
                self.refresh()
        return True

    def _write(self, name: str, arrays: Mapping[str, Array]) -> None:
        unique = f"{name}-{secrets.token_hex(4)}"  # never the name of an older block, which somebody may have mapped
        path, temporary = self._folder / f"{unique}.block", self._folder / f"{unique}.tmp"
        try:
            write_block(path, arrays, identity=self._identity, temporary=temporary, check_space=self._check_space)
        except OSError as error:
            raise StoreError(
                f"a block could not be written to {self._folder} ({error.strerror}), which holds {_gb(_size(self._root))} now "
                f"(limit_gb={self._limit_gb}); nothing of it was kept: make room there, or choose another folder"
            ) from error

    def _check_space(self, block_bytes: int) -> None:
        """Refuses a block that is already counted with its full size, or any further one once the limit is reached."""
        if self._limit_gb is None:
            return
        size = _size(self._root)
        if size > self._limit_gb * BYTES_PER_GB:
            block = f"the next block of {_gb(block_bytes)}" if block_bytes else "the next block"
            raise StoreError(
                f"the folder {self._root} holds {_gb(size - block_bytes)}, and {block} would exceed "
                f"limit_gb={self._limit_gb}; nothing was written: raise the limit, delete subfolders whose identity.json names "
                "models that are no longer used, or choose another folder"
            )

    def _prepare(self, identity: Mapping[str, Any]) -> bool:
        """Makes the folder and says whether it can be written."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self._folder, os.W_OK | os.X_OK):
                return False
            if not (self._folder / "identity.json").exists():
                write_json_atomic(self._folder / "identity.json", {"sha256": self._identity, "identity": dict(identity)})
        except (FileExistsError, NotADirectoryError) as error:
            raise StoreError(f"{self._root} is not a folder; choose another place") from error
        except OSError:
            return False
        return True

    def _mapped(self, block: Block) -> Bytes | None:
        """The memory map of a block; None when it can no longer be read: then it serves no key any more."""
        if block.path not in self._maps:
            if len(self._maps) >= MAX_MAPS:
                del self._maps[next(iter(self._maps))]  # arrays that are still in use keep it open
            try:
                self._maps[block.path] = map_block(block)
            except BlockError as error:
                self._drop(block, block.records, error)
        return self._maps.get(block.path)

    def _drop(self, block: Block, keys: Iterable[str], error: BlockError) -> None:
        """Takes keys of a torn block off the index, so that another copy serves or they are computed again."""
        _log.warning("ignored %s of the block %s: %s", "all" if keys is block.records else "one array", block.path.name, error)
        for key in keys:
            others = [other for other in self._index.pop(key, []) if other is not block]
            self._verified.discard(key)
            if others:
                self._index[key] = others

    def _remove_leftovers(self) -> None:
        """Removes what dead processes left half-written."""
        for name in {path.name[:16] for suffix in ("tmp", "lock") for path in self._folder.glob(f"*.{suffix}")}:
            lock = try_lock(self._folder / f"{name}.lock")
            if lock is None:
                continue
            with lock:
                if lock.is_exclusive:
                    self._remove_temporary(name)

    def _remove_temporary(self, name: str) -> None:
        for path in self._folder.glob(f"{name}-*.tmp"):
            with contextlib.suppress(OSError):  # another user's, in a folder with the sticky bit
                path.unlink(missing_ok=True)


def _checked(made: Mapping[str, Array], asked: Sequence[str]) -> Mapping[str, Array]:
    lacking, foreign = set(asked) - set(made), set(made) - set(asked)
    if lacking or foreign:
        raise ValueError(f"asked for {len(asked)} arrays, got {len(made)}: {len(lacking)} lacking, {len(foreign)} that nobody asked for")
    return made


def _size(folder: Path) -> int:
    """Bytes of all files under a folder, as far as they can be seen."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # removed since, or not ours to see
                total += (Path(parent) / name).stat().st_size
    return total


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / BYTES_PER_GB:.3g} GB"
