"""Where the cells of a sweep keep what they share, and how it is opened: reference values and features of pictures."""

from pathlib import Path

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.cache.store import BlockStore
from medvlm_dpo.data.images import CHECK_NAME
from medvlm_dpo.reference import AbstractReference, StartingReference
from medvlm_dpo.reference_cache import VALUES_VERSION, CachedReference, dtype_of
from medvlm_dpo.settings import CacheSettings
from medvlm_dpo.vision_cache import VisionCache


def place_of(settings: CacheSettings, kind: str) -> Path:
    """The folder of one kind of cache, `reference` or `pictures`."""
    return Path(settings.folder).expanduser() / kind


def folder_problems(settings: CacheSettings) -> list[str]:
    """Why the cache cannot lie where the settings put it; a place that can only be read is none."""
    places = (place_of(settings, "reference"), *place_of(settings, "reference").parents)
    existing = next(place for place in places if place.exists())
    return [] if existing.is_dir() else [f"cache.folder={settings.folder}: {existing} is a file, so no folder can be there; give another"]


def reference_store(settings: CacheSettings, backbone: AbstractBackbone, *, weights: str, layout: str) -> BlockStore | None:
    """The store of one starting model's values; None where the settings switch it off.

    Args:
        settings: folder, switches and limit.
        backbone: loaded: the dtype it computes in is part of the store's identity.
        weights: content hash of the model's files.
        layout: `packed` or `plain`; values differ by rounding.
    """
    if not settings.reference:
        return None
    identity = {
        "values": VALUES_VERSION,
        "weights": weights,
        "decoding": CHECK_NAME,
        "quantisation": None,
        "dtype": str(dtype_of(backbone)),
        "layout": layout,
    }
    return BlockStore(place_of(settings, "reference"), identity=identity, limit_gb=settings.limit_gb)


def use_pictures(settings: CacheSettings, backbone: AbstractBackbone) -> VisionCache | None:
    """Lets a loaded backbone read features of pictures from the cache; None where the settings or a trained tower switch it off."""
    if not settings.pictures or backbone.vision_obstacle() is not None:
        return None
    cache = VisionCache(backbone, place_of(settings, "pictures"), limit_gb=settings.limit_gb)
    backbone.use_vision_cache(cache)
    return cache


def starting_reference(store: BlockStore | None, backbone: AbstractBackbone) -> AbstractReference:
    """The starting model's values: from the store where there is one, else computed at every step."""
    return StartingReference() if store is None else CachedReference(store, dtype=dtype_of(backbone))
