"""Pixels: the same bytes everywhere, disjoint splits, radiological left and right, visible lesions."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from medvlm_dpo.data.phantom.anatomy import IMAGE_SIDE, SPLITS, scene_of
from medvlm_dpo.data.phantom.pairs import PhantomImage
from medvlm_dpo.data.phantom.render import render

GOLDEN = "362f33d0d22d180715e26018c79ee1193988f9ad9ccae9302c8d521c0f856a04"


def _hash(split: str, index: int) -> bytes:
    return hashlib.sha256(render(scene_of(split, index)).tobytes()).digest()


def test_pixels_match_the_golden_hash() -> None:
    """A new hash means other pictures: raise GENERATOR_VERSION, rebuild the models, say so under "Changes results"."""
    digest = hashlib.sha256(b"".join(_hash(split, index) for split in SPLITS for index in range(40)))
    assert digest.hexdigest() == GOLDEN


def test_splits_share_no_picture_and_none_repeats(record_property: Callable[[str, object], None]) -> None:
    number = 2000
    started = time.perf_counter()
    hashes = {_hash(split, index) for split in SPLITS for index in range(number)}
    per_minute = len(SPLITS) * number / (time.perf_counter() - started) * 60
    record_property("images_per_minute", round(per_minute))
    print(f"\n{per_minute:.0f} images a minute on one core")  # noqa: T201
    assert len(hashes) == len(SPLITS) * number


def test_loaded_picture_is_rgb_and_grey() -> None:
    picture = PhantomImage("test", 0).load()
    assert (picture.mode, picture.size) == ("RGB", (IMAGE_SIDE, IMAGE_SIDE))
    channels = np.asarray(picture)
    assert (channels[..., 0] == channels[..., 2]).all()


def test_the_patients_left_is_on_the_right_of_the_picture() -> None:
    """With and without its lesions, a one-sided scene differs in the half where the convention puts that side."""
    checked = 0
    for index in range(200):
        scene = scene_of("test", index)
        if scene.side not in ("left", "right"):
            continue
        change = np.abs(render(scene).astype(int) - render(replace(scene, lesions=())).astype(int)).sum(axis=0)
        halves = {"right": change[: IMAGE_SIDE // 2].sum(), "left": change[IMAGE_SIDE // 2 :].sum()}
        assert max(halves, key=halves.__getitem__) == scene.side, f"image {index}"
        checked += 1
    assert checked > 50


def test_the_heart_lies_towards_the_patients_left() -> None:
    """Mean picture of many chests: brighter right of the midline than left of it, at the height of the heart."""
    chests = [
        render(scene).astype(float) for scene in (scene_of("test", i) for i in range(400)) if scene.region == "chest" and not scene.lesions
    ]
    mean = np.mean(chests, axis=0)
    assert mean[26:34, 30:36].mean() > mean[26:34, 12:18].mean() + 20


def test_lesions_brighten_their_boxes() -> None:
    for index in range(100):
        scene = scene_of("train", index)
        bright, plain = render(scene).astype(int), render(replace(scene, lesions=())).astype(int)
        for lesion in scene.lesions:
            left, top, right, bottom = lesion.box
            assert (bright - plain)[top:bottom, left:right].mean() > 0
