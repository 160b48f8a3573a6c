"""A user's folder with images and records, made on the spot."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medvlm_dpo.data.preference_json import PreferenceJson
from medvlm_dpo.data.records import ReadReport


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


class UserFolder:
    def __init__(self, root: Path) -> None:
        self.root = root

    def picture(self, name: str, seed: int = 0) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
        return path

    def pair(self, id_: Any = "a", *, image: Any = "0.png", **changes: Any) -> dict[str, Any]:
        record = {
            "id": id_,
            "image": image,
            "conversations": _turns("<image>\nWhere is it?", "Left."),
            "rejected_conversations": _turns("<image>\nWhere is it?", "Right."),
            **changes,
        }
        return {key: value for key, value in record.items() if value is not ...}

    def write(self, records: Any, name: str = "pairs.json") -> Path:
        path = self.root / name
        path.write_text(json.dumps(records), encoding="utf-8")
        return path

    def source(self, records: Any, *, data_class: str = "public", on_bad_record: str = "error", fraction: float = 0.1) -> PreferenceJson:
        path = self.write(records)
        return PreferenceJson(
            path=str(path),
            image_root=str(self.root),
            data_class=data_class,
            on_bad_record=on_bad_record,
            validation_fraction=fraction,
        )

    def read(self, records: Any, **settings: Any) -> ReadReport:
        return self.source(records, **settings).read()


@pytest.fixture
def folder(tmp_path: Path) -> UserFolder:
    made = UserFolder(tmp_path / "user")
    made.picture("0.png", seed=0)
    made.picture("1.png", seed=1)
    return made


@pytest.fixture
def turns() -> Callable[[str, str], list[dict[str, str]]]:
    return _turns
