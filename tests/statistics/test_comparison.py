"""Paired differences against golden numbers worked out in exact fractions, laws, and coverage by simulation."""

import numpy as np
import pytest
from scipy.stats import norm

from medvlm_dpo.statistics.comparison import Scored, compare, paired_components, unpaired_components
from medvlm_dpo.statistics.intervals import half_width, holm, p_value

IMAGES = np.array([0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 6, 6, 6, 7, 7])


def bits(text):
    return np.array([float(digit) for digit in text])


START = bits("000100000100010")
A = np.stack([bits("000111011111010"), bits("010111001111010"), bits("010101001111010")])
B = np.stack([bits("000110000101010"), bits("000101000001010"), bits("000110010100011")])
C = np.stack([bits("000110000100110"), bits("000110000111111")])
FLOOR = 1 / 15**2


@pytest.mark.parametrize(
    ("differences", "difference", "by_seed", "seed", "image", "noise", "width", "p"),
    [
        (A - START, 17 / 45, (6 / 15, 6 / 15, 5 / 15), 1 / 2025, 12832 / 1063125, 1648 / 1063125, 0.304655, 0.024108),
        (B - START, 2 / 15, (2 / 15, 1 / 15, 3 / 15), 1 / 675, 1376 / 354375, 808 / 354375, 0.247466, 0.195924),
        (A - B, 11 / 45, (4 / 15, 5 / 15, 2 / 15), 7 / 2025, 7888 / 1063125, 4456 / 1063125, 0.326950, 0.095166),
    ],
)
def test_paired_golden(differences, difference, by_seed, seed, image, noise, width, p):
    found = paired_components(differences, IMAGES)
    assert found.difference == pytest.approx(difference, abs=1e-12)
    assert found.by_seed == pytest.approx(by_seed, abs=1e-12)
    assert [part.degrees_of_freedom for part in found.parts] == [2, 7]
    assert [part.variance for part in found.parts] == pytest.approx([seed, image - noise + FLOOR], abs=1e-12)
    assert half_width(found.parts) == pytest.approx(width, abs=5e-7)
    assert p_value(found.difference, found.parts) == pytest.approx(p, abs=5e-7)


def test_holm_golden():
    p_values = [p_value(found.difference, found.parts) for found in (paired_components(d, IMAGES) for d in (A - START, B - START, A - B))]
    assert holm(p_values) == pytest.approx([0.072325, 0.195924, 0.190333], abs=5e-6)


def test_unpaired_golden():
    """Two common seeds of three: below three quarters, so all seeds of both are used."""
    found = unpaired_components(A, C, IMAGES)
    assert found.difference == pytest.approx(0.144444, abs=5e-7)
    assert [part.degrees_of_freedom for part in found.parts] == [2, 1, 7]
    assert [part.variance for part in found.parts] == pytest.approx([0.000494, 0.010000, 0.009908], abs=5e-7)
    assert half_width(found.parts) == pytest.approx(1.295769, abs=5e-6)
    assert p_value(found.difference, found.parts) == pytest.approx(0.446778, abs=5e-7)


def test_one_seed_golden():
    found = paired_components(A[:1] - C[:1], IMAGES)
    assert found.difference == pytest.approx(0.266667, abs=5e-7)
    assert found.parts[0].variance == pytest.approx(0.015306 + FLOOR, abs=5e-7)
    assert half_width(found.parts) == pytest.approx(0.332314, abs=5e-7)


def test_equal_losses_golden():
    found = paired_components(A - A, IMAGES)
    assert (found.difference, found.parts[0].variance) == (0.0, 0.0)
    assert half_width(found.parts) == pytest.approx(0.157642, abs=5e-7)
    assert p_value(found.difference, found.parts) == 1.0


def test_recall_scores_golden_with_truncation():
    """The noise exceeds the image variance, so only the floor of 1/36 is left."""
    images = np.array([0, 0, 1, 1, 2, 3])
    ours = np.array([[1, 0.5, 0.25, 0, 0.75, 1], [0.5, 1, 0.25, 0.5, 0.75, 0.5], [1, 0.5, 0.75, 0, 0.5, 1]])
    theirs = np.array([[0.5, 0.5, 0.25, 0.25, 0.5, 0.75], [1, 0.25, 0, 0.25, 1, 0.5], [0.5, 0.75, 0.5, 0, 0.25, 1]])
    found = paired_components(ours - theirs, images)
    assert found.difference == pytest.approx(0.111111, abs=5e-7)
    assert [part.variance for part in found.parts] == pytest.approx([0.000193, 1 / 36], abs=5e-7)
    assert half_width(found.parts) == pytest.approx(0.533764, abs=5e-7)
    assert p_value(found.difference, found.parts) == pytest.approx(0.554120, abs=5e-7)


def scored(rows, seeds=None):
    return Scored(dict(zip(seeds or range(len(rows)), rows, strict=True)))


def test_the_start_is_compared_with_every_seed():
    found = compare(scored(A), Scored({0: START}, deterministic=True), IMAGES)
    assert (found.design, found.seeds) == ("paired", ((0, 1, 2), ()))
    assert (found.num_images, found.num_questions) == (8, 15)
    assert found.difference == pytest.approx(17 / 45)
    assert (found.half_width, found.p) == (None, None)  # 8 images: counts only
    turned = compare(Scored({0: START}, deterministic=True), scored(A), IMAGES)
    assert turned.difference == pytest.approx(-17 / 45)


@pytest.mark.parametrize(
    ("ours", "theirs", "design", "seeds"),
    [
        ((0, 1, 2), (0, 1, 2), "paired", ((0, 1, 2), (0, 1, 2))),
        ((0, 1, 2, 3), (1, 2, 3), "paired", ((1, 2, 3), (1, 2, 3))),
        ((0, 1, 2), (0, 1), "unpaired", ((0, 1, 2), (0, 1))),
        ((0, 1), (2, 3), "unpaired", ((0, 1), (2, 3))),
        ((0, 1, 2), (1,), "checkpoints", ((1,), (1,))),
        ((4,), (5,), "checkpoints", ((4,), (5,))),
    ],
)
def test_which_seeds_are_compared(ours, theirs, design, seeds):
    rng = np.random.default_rng(0)
    images = np.arange(30)
    found = compare(
        scored(rng.integers(0, 2, (len(ours), 30)).astype(float), ours),
        scored(rng.integers(0, 2, (len(theirs), 30)).astype(float), theirs),
        images,
    )
    assert (found.design, found.seeds) == (design, seeds)
    assert found.half_width is not None
    assert (found.p is None) == (design == "checkpoints")


def test_between_10_and_20_images_there_is_an_interval_but_no_p():
    rng = np.random.default_rng(1)
    ours, theirs = (scored(rng.integers(0, 2, (3, 15)).astype(float)) for _ in range(2))
    found = compare(ours, theirs, np.arange(15))
    assert found.half_width is not None
    assert found.p is None


def test_bad_scores_are_refused():
    good = scored(A)
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        compare(good, scored(B + 1), IMAGES)
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        compare(good, scored(np.full_like(B, np.nan)), IMAGES)
    with pytest.raises(ValueError, match="questions"):
        compare(good, scored(B[:, :5]), IMAGES)
    with pytest.raises(ValueError, match="at least one seed"):
        compare(good, Scored({}), IMAGES)


def flat(found):
    return [found.difference, *(part.variance for part in found.parts)]


def test_laws():
    rng = np.random.default_rng(2)
    ours, theirs, images = rng.random((3, 40)), rng.random((3, 40)), rng.integers(0, 12, 40)
    base = flat(paired_components(ours - theirs, images))
    order, seeds, names = rng.permutation(40), rng.permutation(3), rng.permutation(12)
    assert flat(paired_components((ours - theirs)[seeds][:, order], images[order])) == pytest.approx(base, abs=1e-12)
    assert flat(paired_components(ours - theirs, names[images])) == pytest.approx(base, abs=1e-12)
    assert flat(paired_components(theirs - ours, images)) == pytest.approx([-base[0], *base[1:]], abs=1e-12)
    shift = rng.random(40)
    assert flat(paired_components((ours + shift) - (theirs + shift), images)) == pytest.approx(base, abs=1e-12)
    start = theirs[:1]
    assert flat(paired_components(ours - start, images)) == pytest.approx(
        flat(paired_components(ours - np.repeat(start, 3, axis=0), images)), abs=1e-12
    )


def test_duplicated_questions_only_lower_the_floor():
    rng = np.random.default_rng(3)
    differences, images = rng.random((4, 30)) - rng.random((1, 30)), rng.integers(0, 9, 30)
    once, twice = (paired_components(np.repeat(differences, n, axis=1), np.repeat(images, n)) for n in (1, 2))
    assert twice.difference == pytest.approx(once.difference)
    assert twice.parts[0].variance == pytest.approx(once.parts[0].variance)
    assert twice.parts[1].variance - 1 / 60**2 == pytest.approx(once.parts[1].variance - 1 / 30**2)


def test_one_question_per_image_agrees_with_two_way_analysis_of_variance():
    """V_seed + V_image without its floor = (MS_seed + MS_image - MS_residual) / (S G), as long as nothing is truncated."""
    rng = np.random.default_rng(4)
    num_seeds, num_images = 4, 25
    table = rng.random((num_seeds, num_images)) * 0.2 + rng.random((1, num_images)) - 0.5
    seed_means, image_means, mean = table.mean(1, keepdims=True), table.mean(0, keepdims=True), table.mean()
    ms_seed = num_images * np.sum((seed_means - mean) ** 2) / (num_seeds - 1)
    ms_image = num_seeds * np.sum((image_means - mean) ** 2) / (num_images - 1)
    ms_rest = np.sum((table - seed_means - image_means + mean) ** 2) / ((num_seeds - 1) * (num_images - 1))
    found = paired_components(table, np.arange(num_images))
    total = sum(part.variance for part in found.parts) - 1 / num_images**2
    assert total == pytest.approx((ms_seed + ms_image - ms_rest) / (num_seeds * num_images))


def draw(rng, *, num_seeds, num_images, per_image, seed_sd, accuracies):
    """Two losses answering the same questions: a latent score with image, question, loss and seed effects, right when positive."""
    images = np.repeat(np.arange(num_images), per_image)
    num_questions = len(images)
    seed_variance = (seed_sd / norm.pdf(norm.ppf(accuracies[1]))) ** 2
    question_variance = 1 - seed_variance - 0.20 - 0.01 - 0.05 - 0.035
    base = np.sqrt(0.20) * rng.standard_normal(num_images)[images] + np.sqrt(question_variance) * rng.standard_normal(num_questions)
    answers = []
    for accuracy in accuracies:
        fixed = base + norm.ppf(accuracy) + np.sqrt(0.01) * rng.standard_normal(num_images)[images]
        fixed = fixed + np.sqrt(0.05) * rng.standard_normal(num_questions)
        noise = np.sqrt(seed_variance) * rng.standard_normal((num_seeds, 1))
        noise = noise + np.sqrt(0.035) * rng.standard_normal((num_seeds, num_questions))
        answers.append((fixed + noise > 0).astype(float))
    return answers[0] - answers[1], images


SCENARIOS = [  # settings, draws, accepted share covered, accepted share rejected, accepted mean half-width in points
    (
        {"num_seeds": 3, "num_images": 200, "per_image": 5, "seed_sd": 0.02, "accuracies": (0.60, 0.60)},
        (95.1, 98.4),
        (1.6, 4.9),
        (6.45, 7.20),
    ),
    (
        {"num_seeds": 5, "num_images": 60, "per_image": 2, "seed_sd": 0.0, "accuracies": (0.60, 0.60)},
        (95.6, 98.7),
        (1.3, 4.4),
        (5.46, 5.73),
    ),
    (
        {"num_seeds": 3, "num_images": 100, "per_image": 2, "seed_sd": 0.015, "accuracies": (0.60, 0.60)},
        (96.4, 99.1),
        (0.9, 3.6),
        (7.05, 7.98),
    ),
    (
        {"num_seeds": 5, "num_images": 60, "per_image": 1, "seed_sd": 0.0, "accuracies": (0.98, 0.93)},
        (94.6, 98.1),
        (19.2, 26.8),
        (5.83, 6.14),
    ),
]


@pytest.mark.parametrize(("settings", "covered", "rejected", "width"), SCENARIOS, ids=["seeds", "images", "mixed", "sparse"])
def test_coverage_by_simulation(settings, covered, rejected, width):
    """2000 sweeps with a known true difference. The ranges exclude z instead of t, images alone, seeds alone, and no floor."""
    rng = np.random.default_rng(20240601)
    true = settings["accuracies"][0] - settings["accuracies"][1]
    found = [paired_components(*draw(rng, **settings)) for _ in range(2000)]
    widths = np.array([half_width(one.parts) for one in found])
    differences = np.array([one.difference for one in found])
    assert covered[0] <= 100 * np.mean(np.abs(differences - true) <= widths) <= covered[1]
    assert rejected[0] <= 100 * np.mean(np.abs(differences) > widths) <= rejected[1]
    assert width[0] <= 100 * np.mean(widths) <= width[1]
