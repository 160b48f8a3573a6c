"""Scenes: pure functions of their names, disjoint places, boxes inside the picture."""

from collections import Counter

import numpy as np
import pytest

from medvlm_dpo.data.phantom.anatomy import IMAGE_SIDE, MODALITIES, RADII, REGIONS, SPLITS, scene_of


def test_scene_is_a_pure_function_of_split_and_index() -> None:
    before = scene_of("test", 7)
    np.random.seed(1)  # noqa: NPY002 - global state must not matter
    scene_of("train", 3)
    assert scene_of("test", 7) == before
    assert scene_of("test", 8) != before


def test_lesions_have_distinct_places_their_size_and_boxes_inside_the_picture() -> None:
    for index in range(300):
        scene = scene_of("train", index)
        places = [(lesion.side, lesion.zone) for lesion in scene.lesions]
        assert len(set(places)) == len(places)
        assert (scene.size is None) == (not scene.lesions)
        for lesion in scene.lesions:
            low, high = RADII[str(scene.size)]
            assert low <= lesion.radius < high
            left, top, right, bottom = lesion.box
            assert 0 <= left < lesion.x < right <= IMAGE_SIDE
            assert 0 <= top < lesion.y < bottom <= IMAGE_SIDE


def test_every_modality_region_and_count_occurs_in_every_split() -> None:
    for split in SPLITS:
        scenes = [scene_of(split, index) for index in range(200)]
        assert {scene.modality for scene in scenes} == set(MODALITIES)
        assert {scene.region for scene in scenes} == set(REGIONS)
        assert set(Counter(len(scene.lesions) for scene in scenes)) == {0, 1, 2, 3}


@pytest.mark.parametrize("split", SPLITS)
def test_the_side_names_every_lesion(split: str) -> None:
    for index in range(100):
        scene = scene_of(split, index)
        sides = {lesion.side for lesion in scene.lesions}
        expected = None if not sides else "both" if len(sides) == 2 else sides.pop()
        assert scene.side == expected
