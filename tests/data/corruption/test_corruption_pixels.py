"""What each corruption does to the pixels, as laws: no picture is stored."""

import math
from collections import Counter

import numpy as np
import pytest
from corruption_world import SIZES, GivenPicture, MadePicture, built, complete, pixels_of, record
from PIL import Image

from medvlm_dpo.data.corruption.base import corrupted_image
from medvlm_dpo.data.corruption.geometry import Crop
from medvlm_dpo.data.corruption.noise import signal_share
from medvlm_dpo.data.corruption.patches import PatchMask, PatchShuffle, PixelMask
from medvlm_dpo.data.corruption.region import RoiNoise, region_of
from medvlm_dpo.errors import InputError

IDS = [f"case {number}" for number in range(200)]


def _flat(level: int, size: tuple[int, int] = (300, 200)) -> GivenPicture:
    return GivenPicture(f"flat {level}", np.full((size[1], size[0], 3), level, dtype=np.uint8))


# --- crop ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 48), (336, 336), (640, 480), (1, 500), (500, 1), (7, 5), (3, 3)], ids=str)
def test_crop_keeps_one_to_twenty_percent_inside_the_picture(size: tuple[int, int]) -> None:
    crop = Crop(seed=0, min_area_fraction=0.01, max_area_fraction=0.2)
    parts = [crop.kept_part(size, record(id_)) for id_ in IDS]
    for left, top, right, bottom in parts:
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        assert 0.01 <= (right - left) * (bottom - top) / (size[0] * size[1]) <= 0.2
    assert len(set(parts)) > 3


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 2)], ids=str)
def test_crop_of_a_picture_too_small_for_its_range_keeps_one_pixel(size: tuple[int, int]) -> None:
    left, top, right, bottom = Crop(0, 0.01, 0.2).kept_part(size, record())
    assert (right - left, bottom - top) == (1, 1)


def test_crop_has_the_usual_ratios_where_they_fit_and_reaches_every_corner() -> None:
    crop = Crop(seed=0, min_area_fraction=0.01, max_area_fraction=0.2)
    parts = np.array([crop.kept_part((400, 400), record(id_)) for id_ in IDS])
    ratios = (parts[:, 2] - parts[:, 0]) / (parts[:, 3] - parts[:, 1])
    shares = (parts[:, 2] - parts[:, 0]) * (parts[:, 3] - parts[:, 1]) / 400**2
    assert 0.73 < ratios.min() < 0.85 < 1.18 < ratios.max() < 1.37  # 3/4 to 4/3 and the rounding of 40 pixels
    assert shares.min() < 0.03 < 0.18 < shares.max()
    assert parts[:, :2].min() < 20 < 380 < parts[:, 2:].max()
    assert abs(shares.mean() - 0.105) < 4 * 0.19 / math.sqrt(12 * len(IDS))  # uniform from 0.01 to 0.2


def test_crop_of_the_whole_picture_is_the_picture() -> None:
    example = record(image=MadePicture("own", (20, 20)))
    assert np.array_equal(pixels_of(corrupted_image(Crop(0, 1.0, 1.0), example)), pixels_of(example.image))


def test_crop_shows_what_it_kept() -> None:
    halves = np.zeros((100, 100, 3), dtype=np.uint8)
    halves[:, 50:] = 255
    example = record(image=GivenPicture("halves", halves))
    crop = Crop(0, 0.01, 0.2)
    for id_ in IDS[:40]:
        left, _, right, _ = crop.kept_part((100, 100), record(id_))
        made = np.asarray(crop.apply(example.image.load(), record(id_)))
        assert bool(made[0, 0, 0] == 0) == (left < 50)
        assert bool(made[-1, -1, 0] == 255) == (right > 50)


# --- noise -----------------------------------------------------------------------------------------------------------


def test_gaussian_noise_has_its_spread_in_every_channel() -> None:
    made = pixels_of(corrupted_image(built("gaussian", std=0.1), record(image=_flat(128)))).astype(float) - 128
    assert np.all(np.abs(made.mean(axis=(0, 1))) < 0.5)
    assert np.all(np.abs(made.std(axis=(0, 1)) / 25.5 - 1) < 0.02)
    within = [(np.abs(made) < 25.5 * z).mean() for z in (1, 2, 3)]
    assert within == pytest.approx([0.6827, 0.9545, 0.9973], abs=0.005)
    assert abs(np.corrcoef(made[..., 0].ravel(), made[..., 1].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(made[:, 1:].ravel(), made[:, :-1].ravel())[0, 1]) < 0.02


def test_noise_is_the_same_whatever_the_size_of_the_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    one = pixels_of(corrupted_image(built("gaussian"), record(image=_flat(128, (5, 1)))))
    monkeypatch.setattr("medvlm_dpo.data.corruption.noise._BAND_VALUES", 15)
    many = pixels_of(corrupted_image(built("gaussian"), record(image=_flat(128, (5, 40)))))
    assert np.array_equal(many[:1], one)
    assert len({row.tobytes() for row in many}) == 40  # no band repeats another's noise


def test_diffusion_follows_the_published_schedule() -> None:
    # beta_0 = sigmoid(-6) * 0.00499 + 0.00001 = 0.0024726 * 0.00499 + 0.00001 = 0.00002234
    assert signal_share(0) == pytest.approx(1 - 0.00002234, abs=1e-8)
    # The sum of beta over symmetric steps is 1000 * (0.00499 / 2 + 0.00001) = 2.505, and -ln(1 - beta) = beta + beta^2/2 + ...
    betas = 1 / (1 + np.exp(-np.linspace(-6, 6, 1000))) * 0.00499 + 0.00001
    assert betas.sum() == pytest.approx(2.505)
    assert signal_share(999) == pytest.approx(math.exp(-(betas + betas**2 / 2 + betas**3 / 3).sum()), rel=1e-6)
    assert all(signal_share(step) > signal_share(step + 1) for step in range(0, 999, 37))


@pytest.mark.parametrize("step", [0, 100, 300])
def test_diffusion_shrinks_the_signal_and_adds_the_rest_as_noise(step: int) -> None:
    kept = signal_share(step)
    made = pixels_of(corrupted_image(built("diffusion_noise", step=step), record(image=_flat(160)))) / 127.5 - 1
    assert made.mean() == pytest.approx(math.sqrt(kept) * (160 / 127.5 - 1), abs=0.006)
    assert made.std() == pytest.approx(math.sqrt(1 - kept), abs=0.004)


# --- the lesion ------------------------------------------------------------------------------------------------------


def test_noise_stays_inside_the_boxes() -> None:
    example = record(image=_flat(128, (60, 40)), lesion_boxes=[[5, 3, 15, 9], [30.4, 20, 41.2, 45]])
    made = pixels_of(corrupted_image(built("roi_noise"), example))
    changed = (made != 128).any(axis=2)
    inside = np.zeros((40, 60), dtype=bool)
    inside[3:9, 5:15] = inside[20:40, 30:42] = True
    assert not changed[~inside].any()
    assert changed[inside].mean() > 0.97
    assert np.array_equal(region_of(example, (60, 40)), inside)


def test_a_mask_marks_what_is_not_black_and_adds_to_boxes() -> None:
    mask = np.zeros((40, 60, 3), dtype=np.uint8)
    mask[30:, :10, 2] = 1
    example = record(image=_flat(128, (60, 40)), lesion_mask=GivenPicture("mask", mask), lesion_boxes=[[0, 0, 2, 2]])
    inside = np.zeros((40, 60), dtype=bool)
    inside[30:, :10] = inside[:2, :2] = True
    assert np.array_equal(region_of(example, (60, 40)), inside)
    assert not (pixels_of(corrupted_image(built("roi_noise"), example)) != 128).any(axis=2)[~inside].any()


def test_a_mask_of_another_size_is_refused() -> None:
    example = record("case 7", lesion_mask=_flat(255, (10, 12)))
    with pytest.raises(InputError, match="record case 7: the mask is 10 x 12 pixels, the image 48 x 48"):
        corrupted_image(built("roi_noise"), example).load()


def test_a_box_outside_the_picture_marks_nothing() -> None:
    assert not region_of(record(lesion_boxes=[[-9, -9, -2, -2], [60, 0, 70, 5]]), (48, 48)).any()
    assert region_of(record(lesion_boxes=[[-9, -9, 1, 1]]), (48, 48)).sum() == 1


def test_an_empty_list_of_boxes_says_that_there_is_no_lesion() -> None:
    example = record(lesion_boxes=[])
    assert built("roi_noise").lacks(example) is None
    assert corrupted_image(built("roi_noise"), example) is example.image


def test_a_record_without_region() -> None:
    told = "has neither regions nor a mask; add one of them, or set corruption.missing=clean to reuse its image"
    example = record("case 7")
    assert built("roi_noise").lacks(example) == told
    with pytest.raises(InputError, match=f"corruption: record case 7 {told}"):
        corrupted_image(built("roi_noise"), example)
    assert built("roi_noise", missing="clean").lacks(example) is None
    assert corrupted_image(built("roi_noise", missing="clean"), example) is example.image


def test_apply_leaves_an_unmarked_picture_alone() -> None:
    picture = MadePicture("own").load()
    assert np.array_equal(np.asarray(RoiNoise(0, 1.0, "clean").apply(picture, record())), np.asarray(picture))


# --- MMedPO's released rule ------------------------------------------------------------------------------------------


def test_released_noise_ignores_the_picture_and_is_nearly_black_and_white() -> None:
    dark, bright = (record("a", _flat(level), rejected_noised=1) for level in (0, 255))
    made = pixels_of(corrupted_image(built("roi_noise_released"), dark))
    assert np.array_equal(made, pixels_of(corrupted_image(built("roi_noise_released"), bright)))
    assert (made == 0).mean() == pytest.approx(0.5, abs=0.01)
    # P(0 < z < 0.1) = 0.0398 lie between black and white
    assert ((made > 0) & (made < 255)).mean() == pytest.approx(0.0398, abs=0.003)


def test_released_rule_without_flag_takes_the_records_picture_and_then_its_own() -> None:
    rule, worse = built("roi_noise_released"), MadePicture("worse")
    assert corrupted_image(rule, record(worse=worse)) is worse
    plain = record(rejected_noised=0)
    assert corrupted_image(rule, plain) is plain.image
    flagged = corrupted_image(rule, record(worse=worse, rejected_noised=1, chosen_noised=1))
    assert flagged.content_hash() not in (worse.content_hash(), plain.image.content_hash())


def test_released_rule_for_every_record() -> None:
    rule = built("roi_noise_released", records="all")
    for example in (record(), record(worse=MadePicture("worse")), record(chosen_noised=1)):
        made = pixels_of(corrupted_image(rule, example))
        assert (made == 0).mean() == pytest.approx(0.5, abs=0.04)


def test_a_noised_chosen_picture_is_refused() -> None:
    told = "has chosen_noised=1, which asks for noise in place of the true image; leave the record out"
    assert built("roi_noise_released").lacks(record(chosen_noised=1)) == told
    with pytest.raises(InputError, match="record b has chosen_noised=1"):
        corrupted_image(built("roi_noise_released"), record("b", chosen_noised=1))


# --- without chance --------------------------------------------------------------------------------------------------


def test_blank_shows_one_level() -> None:
    assert set(np.unique(pixels_of(corrupted_image(built("blank"), record())))) == {0}
    assert set(np.unique(pixels_of(corrupted_image(built("blank", level=77), record())))) == {77}


def test_blur_spreads_a_line_by_its_radius() -> None:
    line = np.zeros((101, 101, 3), dtype=np.uint8)
    line[:, 50] = 255
    row = pixels_of(corrupted_image(built("blur", radius_fraction=0.05), record(image=GivenPicture("line", line))))[50, :, 0].astype(float)
    place = np.arange(101)
    centre = (row * place).sum() / row.sum()
    assert centre == pytest.approx(50, abs=0.1)
    assert math.sqrt((row * (place - centre) ** 2).sum() / row.sum()) == pytest.approx(5.05, rel=0.15)


def test_file_shows_the_records_own_picture() -> None:
    worse = MadePicture("worse")
    assert corrupted_image(built("file"), record(worse=worse)) is worse
    told = "has no rejected_image; set corruption.missing=clean to reuse its image"
    assert built("file").lacks(record()) == told
    with pytest.raises(InputError, match=f"corruption: record 9 {told}"):
        corrupted_image(built("file"), record("9"))
    clean = record()
    assert built("file", missing="clean").lacks(clean) is None
    assert corrupted_image(built("file", missing="clean"), clean) is clean.image
    picture = Image.new("RGB", (3, 3))
    assert built("file", missing="clean").apply(picture, clean) is picture


# --- patches and pixels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_shuffled_patches_are_a_permutation(size: tuple[int, int]) -> None:
    own = MadePicture("own", size)
    shuffle = PatchShuffle(seed=0, patches_per_side=4)
    before, after = pixels_of(own), pixels_of(corrupted_image(shuffle, record(image=own)))
    down, across = min(4, size[1]), min(4, size[0])
    high, wide = size[1] // down, size[0] // across
    assert Counter(_patches(before, down, across, high, wide)) == Counter(_patches(after, down, across, high, wide))
    assert np.array_equal(before[down * high :], after[down * high :])
    assert np.array_equal(before[:, across * wide :], after[:, across * wide :])


def _patches(pixels: np.ndarray, down: int, across: int, high: int, wide: int) -> list[bytes]:
    places = [(row * high, column * wide) for row in range(down) for column in range(across)]
    return [pixels[top : top + high, left : left + wide].tobytes() for top, left in places]


def test_every_order_of_patches_is_equally_likely() -> None:
    corners = GivenPicture("corners", np.repeat(np.arange(4, dtype=np.uint8).reshape(2, 2, 1), 3, axis=2))
    shuffle = PatchShuffle(seed=0, patches_per_side=2)
    orders = Counter(pixels_of(corrupted_image(shuffle, record(str(number), corners))).tobytes() for number in range(2400))
    assert len(orders) == 24
    assert 60 < min(orders.values()) < max(orders.values()) < 140  # 100 on average, four standard deviations


def test_hidden_patches_are_whole_and_their_share_is_as_asked() -> None:
    shares = []
    for id_ in IDS:
        hidden = (pixels_of(corrupted_image(PatchMask(0, 10, 0.6, 7), record(id_, _flat(100, (60, 40))))) == 7).all(axis=2)
        grid = hidden.reshape(10, 4, 10, 6).swapaxes(1, 2).reshape(100, 24)
        assert np.array_equal(grid.all(axis=1), grid.any(axis=1))
        shares.append(grid.all(axis=1).mean())
    assert np.mean(shares) == pytest.approx(0.6, abs=0.015)  # 20,000 patches: four standard deviations are 0.014
    assert np.std(shares) == pytest.approx(math.sqrt(0.6 * 0.4 / 100), rel=0.2)  # each patch by itself


def test_hidden_patches_differ_by_one_pixel_where_the_side_is_no_multiple() -> None:
    hidden = (pixels_of(corrupted_image(PatchMask(0, 3, 0.5, 0), record(image=_flat(9, (7, 8))))) == 0).all(axis=2)
    rows, columns = np.repeat([0, 1, 2], [3, 3, 2]), np.repeat([0, 1, 2], [3, 2, 2])
    assert all(len(set(hidden[np.ix_(rows == row, columns == column)].ravel())) == 1 for row in range(3) for column in range(3))
    assert hidden.any()
    assert not hidden.all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_share_of_grey_pixels_is_exact(size: tuple[int, int]) -> None:
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[..., 0] = 200  # the mean, 66.67, is in no channel
    made = pixels_of(corrupted_image(PixelMask(0, 0.3), record(image=GivenPicture("red", pixels))))
    grey = (made == 67).all(axis=2)
    assert grey.sum() == int(0.3 * size[0] * size[1])
    assert np.array_equal(made[~grey], pixels[~grey])


def test_everything_can_be_hidden() -> None:
    assert set(np.unique(pixels_of(corrupted_image(built("patch_mask", mask_probability=1), complete())))) == {0}
    assert len(np.unique(pixels_of(corrupted_image(built("pixel_mask", masked_fraction=1), complete())))) == 1
