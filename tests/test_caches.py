"""What a store of reference values is told apart by: nothing of another computation is ever found in it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from core_world import make_backbone

from medvlm_dpo import caches
from medvlm_dpo.backbones.llava import LlavaBackbone
from medvlm_dpo.cache.store import BlockStore
from medvlm_dpo.caches import reference_store, starting_reference
from medvlm_dpo.reference import StartingReference
from medvlm_dpo.settings import CacheSettings

CHANGES: dict[str, Callable[[pytest.MonkeyPatch, LlavaBackbone], dict[str, str]]] = {
    "weights": lambda _, __: {"weights": "others"},
    "layout": lambda _, __: {"layout": "plain"},
    "dtype": lambda _, backbone: dict[str, str]() if backbone.module.double() else {},
    "meaning": lambda patch, _: patch.setattr(caches, "VALUES_VERSION", 0) or {},
    "decoding of pictures": lambda patch, _: patch.setattr(caches, "CHECK_NAME", "image-0") or {},
    "nothing": lambda _, __: {},
}


def opened(folder: Path, backbone: LlavaBackbone, **changed: str) -> BlockStore:
    settings = CacheSettings(folder=str(folder), reference=True, pictures=False, limit_gb=None)
    store = reference_store(settings, backbone, **{"weights": "one", "layout": "packed", **changed})
    assert store is not None
    return store


@pytest.mark.parametrize("change", CHANGES)
def test_values_of_another_computation_are_not_found(
    change: str, untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = make_backbone(untrained_model)
    opened(tmp_path, backbone).fill([["key"]], lambda keys: {key: np.zeros(3) for key in keys}, report=lambda _, __: None)
    changed = CHANGES[change](monkeypatch, backbone)
    assert ("key" in opened(tmp_path, backbone, **changed)) == (change == "nothing")


def test_a_reference_that_is_not_kept_is_computed(untrained_model: Path, tmp_path: Path) -> None:
    backbone = make_backbone(untrained_model)
    settings = CacheSettings(folder=str(tmp_path), reference=False, pictures=False, limit_gb=None)
    store = reference_store(settings, backbone, weights="one", layout="packed")
    assert store is None
    assert isinstance(starting_reference(store, backbone), StartingReference)
    assert list(tmp_path.iterdir()) == []
