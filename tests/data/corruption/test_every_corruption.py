"""What holds for every corruption alike: one contract for every yaml."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corruption_world import NAMES, SIZES, MadePicture, built, complete, digests, node, pixels_of, record

from medvlm_dpo.config.instantiate import check_targets
from medvlm_dpo.data.corruption.base import CorruptedImage, corrupted_image
from medvlm_dpo.errors import InputError
from medvlm_dpo.vocab import ImageSource

DRAWN = sorted(name for name in NAMES if "seed" in node(name))


def test_all_names_of_the_catalogue_are_there() -> None:
    expected = "blank blur crop diffusion_noise file gaussian patch_mask patch_shuffle pixel_mask roi_noise roi_noise_released"
    assert expected.split() == NAMES
    assert set(NAMES) - set(DRAWN) == {"blank", "blur", "file"}  # without chance, so without seed


def test_none_makes_nothing() -> None:
    assert node("none") == {"kind": "none"}


@pytest.mark.parametrize("name", NAMES)
def test_every_yaml_fits_its_class(name: str) -> None:
    assert check_targets({"corruption": node(name)}) == []
    assert built(name).lacks(complete()) is None
    assert isinstance(corrupted_image(built(name), complete()), ImageSource)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
@pytest.mark.parametrize("name", NAMES)
def test_size_and_mode_stay_and_the_source_is_not_changed(name: str, size: tuple[int, int], grey: bool) -> None:
    own = MadePicture("own", size, grey)
    picture = own.load()
    made = built(name).apply(picture, complete(image=own))
    assert made.mode == "RGB"
    assert made.size == (size if name != "file" else (48, 48))
    assert np.array_equal(np.asarray(picture), pixels_of(own))


@pytest.mark.parametrize("name", NAMES)
def test_pixels_change(name: str) -> None:
    example = complete()
    assert not np.array_equal(pixels_of(corrupted_image(built(name), example)), pixels_of(example.image))


@pytest.mark.parametrize("name", DRAWN)
def test_seed_and_id_decide_the_draws_and_nothing_else_does(name: str) -> None:
    first, other = complete("a"), complete("b")
    corruption = built(name)
    once = pixels_of(corrupted_image(corruption, first))
    elsewhere = pixels_of(corrupted_image(corruption, other))
    np.random.default_rng().random()
    assert np.array_equal(pixels_of(corrupted_image(built(name), complete("a"))), once)
    assert not np.array_equal(elsewhere, once)
    assert not np.array_equal(pixels_of(corrupted_image(built(name, seed=1), first)), once)


def test_another_process_makes_the_same_pixels() -> None:
    program = "import json, sys; sys.path[:0] = json.loads(sys.argv[1])\nfrom corruption_world import digests\nprint(json.dumps(digests()))"
    paths = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[3])]
    told = subprocess.run([sys.executable, "-c", program, json.dumps(paths)], check=True, capture_output=True, text=True).stdout
    assert json.loads(told) == digests()


@pytest.mark.parametrize("name", NAMES)
def test_a_corrupted_image_travels_to_a_worker(name: str) -> None:
    source = corrupted_image(built(name), complete())
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.key, copy.content_hash()) == (source.key, source.content_hash())
    assert np.array_equal(pixels_of(copy), pixels_of(source))


def test_the_hash_follows_whatever_decides_the_pixels() -> None:
    same = CorruptedImage(built("gaussian"), complete()).content_hash()
    assert CorruptedImage(built("gaussian"), complete()).content_hash() == same
    others = [
        CorruptedImage(built("gaussian", std=0.4), complete()),
        CorruptedImage(built("gaussian", seed=1), complete()),
        CorruptedImage(built("gaussian"), complete("b")),
        CorruptedImage(built("gaussian"), complete(image=MadePicture("other"))),
        CorruptedImage(built("diffusion_noise"), complete()),
    ]
    assert len({same, *(other.content_hash() for other in others)}) == 6
    assert len({other.key for other in others}) == 5


@pytest.mark.parametrize("name", ["blank", "blur"])
def test_without_chance_two_records_of_one_picture_share_the_corrupted_one(name: str) -> None:
    first, second = (corrupted_image(built(name), record(id_)) for id_ in "ab")
    assert (first.key, first.content_hash()) == (second.key, second.content_hash())
    assert first.key != record().image.key


def test_regions_are_part_of_the_hash() -> None:
    noise, mask = built("roi_noise"), MadePicture("mask")
    records = [
        record(lesion_boxes=[[0, 0, 4, 4]]),
        record(lesion_boxes=[[0, 0, 4, 5]]),
        record(lesion_boxes=[[0, 0, 4, 4]], lesion_mask=mask),
        record(lesion_mask=mask),
        record(lesion_mask=MadePicture("mask 2")),
    ]
    assert len({corrupted_image(noise, example).content_hash() for example in records}) == 5


@pytest.mark.parametrize(
    ("name", "wrong", "told"),
    [
        ("crop", {"min_area_fraction": 0}, "corruption.min_area_fraction must be > 0 and at most 1, got 0"),
        ("crop", {"max_area_fraction": 1.5}, "corruption.max_area_fraction must be > 0 and at most 1, got 1.5"),
        ("crop", {"min_area_fraction": 0.3}, "corruption.min_area_fraction must be at most corruption.max_area_fraction, got 0.3 and 0.2"),
        ("roi_noise", {"std": 0}, "corruption.std must be > 0, got 0"),
        ("roi_noise", {"missing": "clear"}, "corruption.missing: 'clear' is not known; did you mean clean?"),
        ("roi_noise_released", {"std": float("nan")}, "corruption.std must be > 0, got nan"),
        ("roi_noise_released", {"records": "every"}, "corruption.records: 'every' is not known; choose from all, flagged"),
        ("diffusion_noise", {"step": 1000}, "corruption.step must be a whole number from 0 to 999, got 1000"),
        ("diffusion_noise", {"step": -1}, "corruption.step must be a whole number from 0 to 999, got -1"),
        ("diffusion_noise", {"step": 0.5}, "corruption.step must be a whole number from 0 to 999, got 0.5"),
        ("gaussian", {"std": -1}, "corruption.std must be > 0, got -1"),
        ("gaussian", {"std": float("inf")}, "corruption.std must be > 0, got inf"),
        ("blank", {"level": 256}, "corruption.level must be a whole number from 0 to 255, got 256"),
        ("blank", {"level": True}, "corruption.level must be a whole number from 0 to 255, got True"),
        ("blur", {"radius_fraction": 0}, "corruption.radius_fraction must be > 0, got 0"),
        ("blur", {"radius_fraction": 2}, "corruption.radius_fraction must be at most 1, got 2"),
        ("patch_shuffle", {"patches_per_side": 1}, "corruption.patches_per_side must be a whole number from 2 to 1000, got 1"),
        ("patch_mask", {"patches_per_side": 0}, "corruption.patches_per_side must be a whole number from 1 to 1000, got 0"),
        ("patch_mask", {"mask_probability": 1.1}, "corruption.mask_probability must be > 0 and at most 1, got 1.1"),
        ("patch_mask", {"level": -1}, "corruption.level must be a whole number from 0 to 255, got -1"),
        ("pixel_mask", {"masked_fraction": 0}, "corruption.masked_fraction must be > 0 and at most 1, got 0"),
        ("file", {"missing": "own"}, "corruption.missing: 'own' is not known; choose from clean, error"),
    ],
)
def test_wrong_settings_are_named(name: str, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as caught:
        built(name, **wrong)
    assert caught.value.problems == (told,)


def test_all_wrong_settings_are_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        built("patch_mask", patches_per_side=0, mask_probability=2, level=300)
    assert len(caught.value.problems) == 3
