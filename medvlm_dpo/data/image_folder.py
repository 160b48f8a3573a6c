"""The pictures a file of records names: found inside their root, checked once each, remembered by content."""

import difflib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from medvlm_dpo.data.images import CHECK_NAME, CONVERSIONS, BrokenImageError, FileImage, Verdict, check, quiet_pillow
from medvlm_dpo.data.manifest import Manifest
from medvlm_dpo.data.records import Flaw
from medvlm_dpo.errors import InputError

_log = logging.getLogger(__name__)
MISSING = "the image file is missing under the image root"
_SAVED_EVERY = 5_000  # checked images; an interrupted check of a big folder goes on near where it was


class CheckedImage(NamedTuple):
    """A picture that can be used, with what is known of it (see `Verdict`), or what is wrong with it."""

    image: FileImage | None
    flaw: Flaw | None
    conversions: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)
    is_black: bool = False


def existing(path: str | Path, key: str, *, folder: bool = False) -> Path:
    """The path, when something of the right kind stands there.

    Args:
        path: as the user gave it.
        key: the setting, for the message: `data.path`.
        folder: whether a folder is expected.

    Raises:
        InputError: with the nearest existing name.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise InputError(f"{key} is not set; give a {'folder' if folder else 'file'}")
    given, kind = Path(path).expanduser(), "folder" if folder else "file"
    if given.is_dir() if folder else given.is_file():
        return given
    if given.exists():
        raise InputError(f"{key}: {given} is not a {kind}; give a {kind}")
    if not given.parent.is_dir():
        raise InputError(f"{key}: there is no {kind} {given}; the folder {given.parent} does not exist either")
    siblings = [entry.name for entry in given.parent.iterdir() if entry.is_dir() == folder]
    close = difflib.get_close_matches(given.name, siblings, n=1)
    raise InputError(f"{key}: there is no {kind} {given}{f'; did you mean {given.parent / close[0]}?' if close else ''}")


def locate(name: str, root: Path) -> Path:
    """The file a record names, with symbolic links and `..` resolved.

    Args:
        name: path in the record, relative to the root.
        root: the image root, already resolved.

    Raises:
        BrokenImageError: it leaves the root, is missing or no regular file.
    """
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise BrokenImageError(Flaw("the image path leaves the image root; links and `..` may not lead out of it", name))
        if path.is_file():
            return path
        reason = "the image is no regular file" if path.exists() else MISSING
    except PermissionError:
        reason = "the image file may not be read (permission denied)"
    except (OSError, ValueError, RuntimeError):  # a name the file system refuses: too long, a zero byte, a loop of links
        reason = "the image path is no possible file name"
    raise BrokenImageError(Flaw(reason, name))


def check_images(names: Iterable[str], root: Path, manifest: Manifest, *, data_class: str) -> dict[str, CheckedImage]:
    """Finds, hashes and fully decodes every picture once; contents the manifest knows are not decoded again.

    Args:
        names: paths in the records, relative to the root; repetitions cost nothing.
        root: the image root.
        manifest: cache of hashes and verdicts, saved between every few thousand pictures; save it afterwards.
        data_class: for credentialed data a picture's key is a piece of its hash instead of its path.

    Returns:
        By name, the picture or its flaw.
    """
    distinct, base = list(dict.fromkeys(names)), root.resolve()
    checked: dict[str, CheckedImage] = {}
    # Pillow decodes outside the interpreter lock, so threads use all cores without copying pictures between processes.
    with quiet_pillow(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(distinct), _SAVED_EVERY):
            part = distinct[start : start + _SAVED_EVERY]
            results = pool.map(lambda name: _check_one(name, base, manifest, hide_path=data_class == "credentialed"), part)
            checked.update(zip(part, results, strict=True))
            if len(checked) < len(distinct):
                manifest.save()
                _log.info("checked %s of %s images", f"{len(checked):,}", f"{len(distinct):,}")
    return checked


def refuse_wrong_root(checked: Mapping[str, CheckedImage], root: Path, key: str) -> None:
    """Tells the one cause when no picture is found at all because the root is one level off.

    Raises:
        InputError: no named picture is under the root, but the first one is under its parent or one of its folders.
    """
    if not checked or any(image.flaw is None or image.flaw.reason != MISSING for image in checked.values()):
        return
    first = next(iter(checked))
    others = [root.resolve().parent, *sorted(entry for entry in root.iterdir() if entry.is_dir())]
    right = next((other for other in others if (other / first).is_file()), None)
    if right is not None:
        raise InputError(
            f"{key}: none of the {len(checked):,} images is under {root}, but the first one is under {right}; set {key}={right}"
        )


def conversion_notes(images: Iterable[CheckedImage]) -> list[str]:
    """One sentence per kind of conversion, with the number of pictures concerned."""
    counts = Counter(name for image in images if image.image for name in image.conversions)
    return [f"{counts[name]:,} image{'s are' if counts[name] > 1 else ' is'} {text}" for name, text in CONVERSIONS.items() if counts[name]]


def _check_one(name: str, root: Path, manifest: Manifest, *, hide_path: bool) -> CheckedImage:
    try:
        path = locate(name, root)
        digest = manifest.sha256(path)
        verdict = _verdict(path, digest, manifest)
    except BrokenImageError as error:
        return CheckedImage(None, error.flaw)
    except OSError as error:
        return CheckedImage(None, Flaw(f"the image file cannot be read: {error.strerror}", name))
    if verdict.flaw:
        detail = f"{name}: {verdict.flaw.detail}" if verdict.flaw.detail else name
        return CheckedImage(None, Flaw(verdict.flaw.reason, detail))
    key = f"image-{digest[:16]}" if hide_path else path.relative_to(root).as_posix()
    return CheckedImage(FileImage(path, key, digest), None, verdict.conversions, verdict.size, verdict.is_black)


def _verdict(path: Path, digest: str, manifest: Manifest) -> Verdict:
    known = manifest.verdict(digest, CHECK_NAME)
    if known is None:
        verdict = check(path)
        stored = {
            "conversions": list(verdict.conversions),
            "flaw": list(verdict.flaw) if verdict.flaw else None,
            "size": list(verdict.size),
            "is_black": verdict.is_black,
        }
        manifest.remember_verdict(digest, CHECK_NAME, stored)
        return verdict
    width, height = known["size"]
    return Verdict(Flaw(*known["flaw"]) if known["flaw"] else None, tuple(known["conversions"]), (width, height), known["is_black"])


def existing_images(names: Iterable[str], root: Path) -> dict[str, Path]:
    """The named pictures that can be read at all, by name; broken ones included, since mending one changes the result."""
    base, found = root.resolve(), dict[str, Path]()
    for name in dict.fromkeys(names):
        try:
            found[f"image {name}"] = locate(name, base)
        except BrokenImageError:
            continue
    return found
