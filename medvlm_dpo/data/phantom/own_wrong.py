"""The starting model's own wrong answers: built once with the model, kept beside it, read when pairs are made."""

import gzip
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from medvlm_dpo.data.phantom.draws import GENERATOR_VERSION
from medvlm_dpo.data.phantom.tiny_models import MODELS_FOLDER, RECIPES
from medvlm_dpo.errors import InputError, nearest
from medvlm_dpo.files import write_bytes_atomic

OWN_WRONG_FILE = "own_wrong.jsonl.gz"
_BUILTIN = "builtin:"
_REMEDY = "set data.own_wrong_fraction=0 to use single_fact pairs only, or use a model rebuilt with `python run.py task=pretrain`"


@dataclass(frozen=True, order=True)
class OwnWrong:
    """A wrong greedy answer: `answer` to question `question` (0-based) of image `image` of `split`."""

    split: str
    image: int
    question: int
    answer: str


def starting_folder(starting_model: str | None) -> Path:
    """The folder of a starting model given as `builtin:NAME` or as a path.

    Raises:
        InputError: no model is set, or no built-in one has this name.
    """
    if starting_model is None:
        raise InputError(
            "data.starting_model is null: own wrong answers lie beside a model; set model.checkpoint, or data.own_wrong_fraction=0."
        )
    if not starting_model.startswith(_BUILTIN):
        return Path(starting_model)
    name = starting_model.removeprefix(_BUILTIN)
    if name not in RECIPES:
        raise InputError(f"data.starting_model: there is no built-in model {name!r}{nearest(name, tuple(RECIPES))}.")
    return MODELS_FOLDER / name


def write_own_wrong(folder: Path, records: Iterable[OwnWrong]) -> Path:
    """Writes the file of a model, one JSON object a line after a header; the same records give the same bytes."""
    header = {"schema_version": 1, "generator_version": GENERATOR_VERSION}
    lines = [json.dumps(line, ensure_ascii=False) for line in (header, *(asdict(record) for record in sorted(records)))]
    path = folder / OWN_WRONG_FILE
    write_bytes_atomic(path, gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))
    return path


def read_own_wrong(folder: Path) -> tuple[OwnWrong, ...]:
    """Reads the file of a model.

    Raises:
        InputError: the file is missing, damaged, or was built with another version of the generator.
    """
    path = folder / OWN_WRONG_FILE
    if not path.is_file():
        raise InputError(f"{path}: this starting model comes without a file of its own wrong answers; {_REMEDY}.")
    try:
        header, *lines = (json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines())
        version = header["generator_version"]
        records = tuple(OwnWrong(**line) for line in lines)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as gzipped JSON lines of own wrong answers ({error}); {_REMEDY}.") from error
    if version != GENERATOR_VERSION:
        raise InputError(f"{path}: was built with phantom version {version}, this is version {GENERATOR_VERSION}; {_REMEDY}.")
    return records
