"""What any data source gives and the hash of everything that decides it, whether it reads files or draws its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from medvlm_dpo.data.manifest import Manifest
from medvlm_dpo.data.records import DataSource, ReadReport
from medvlm_dpo.files import sha256_of_json


@runtime_checkable
class FileSource(DataSource, Protocol):
    """A source that reads the user's files and profits from a manifest."""

    def read(self, manifest: Manifest | None = None) -> ReadReport:
        """All records; hashes and verdicts on images come from and go to the manifest."""
        ...

    def named_files(self) -> Mapping[str, Path]:
        """Every existing file that decides the result, under a name that does not change when the folder moves."""
        ...


def read_source(source: DataSource, manifest: Manifest) -> ReadReport:
    """Reads any source; one that reads files gets the manifest, so that a second look at the same images is fast.

    Args:
        source: what a `data` or `questions` node built.
        manifest: save it afterwards.

    Raises:
        InputError: the source's input cannot be used.
    """
    return source.read(manifest) if isinstance(source, FileSource) else source.read()


def content_of(source: DataSource, manifest: Manifest) -> str:
    """Hash of everything that decides what a source gives: its settings and its files' content, never their place.

    An edited, added or removed file gives another hash; moving the folder does not.

    Args:
        source: what a `data` or `questions` node built.
        manifest: where the files' hashes come from; save it afterwards.

    Returns:
        Hexadecimal SHA-256.
    """
    named = source.named_files() if isinstance(source, FileSource) else {file.name: file for file in source.input_files()}
    contents = {name: manifest.sha256(file) for name, file in named.items()}
    return sha256_of_json({"recipe": source.recipe(), "files": contents})
