"""The difference of two losses on one test set, with seeds and images as crossed random effects.

Every question is asked of every cell. The difference varies with the seed of the training and with the images that happened to be
sampled; the two variances are estimated separately, each with its own degrees of freedom (see `intervals.half_width`). Questions on
one image are one cluster. A floor of one question's worth of variance keeps rare disagreements honest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvlm_dpo.statistics.intervals import Part, half_width, p_value

FEWEST_FOR_INTERVAL = 10  # images, and questions; below, only counts are honest
FEWEST_IMAGES_FOR_P = 20

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


class Components(NamedTuple):
    """A difference and where its variance comes from.

    Args:
        difference: mean over seeds and questions, first minus second.
        by_seed: the same for every seed (one value for a design without seeds).
        parts: variance and degrees of freedom, seeds before images; a single image part when there is only one seed.
    """

    difference: float
    by_seed: tuple[float, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Scored:
    """All scores of one loss, or of the start, on one test set.

    Args:
        scores: by seed, one score in [0, 1] per question, in the same order everywhere.
        deterministic: True for the start, which has no seed: its single entry stands for every seed.
    """

    scores: Mapping[int, Floats]
    deterministic: bool = False


@dataclass(frozen=True)
class Comparison:
    """A difference as far as it can be told.

    Args:
        difference: first minus second.
        half_width: half of the 95 % interval, None where too few images or questions allow one.
        p: None where it would not be honest: one seed, or fewer than 20 images.
        design: `paired` (common seeds), `unpaired` (all seeds of both) or `checkpoints` (one seed: these two, not the losses).
        seeds: seeds used of the first and of the second; empty for a deterministic side.
        num_images, num_questions: size of the test set.
    """

    difference: float
    half_width: float | None
    p: float | None
    design: str
    seeds: tuple[tuple[int, ...], tuple[int, ...]]
    num_images: int
    num_questions: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the 95 % interval is known and leaves 0 out."""
        return self.half_width is not None and abs(self.difference) > self.half_width


def compare(first: Scored, second: Scored, images: Codes) -> Comparison:
    """Difference of two losses, first minus second.

    Paired when one side is deterministic or at least two and three quarters of the seeds are common; unpaired when both have several
    seeds otherwise; else a comparison of two checkpoints. The choice looks at the design only, never at the scores.

    Args:
        first: scores of one loss.
        second: scores of another loss, or of the start.
        images: for every question a number that is the same for questions on one image.

    Raises:
        ValueError: no scores, differing numbers of questions, or a score outside [0, 1].
    """
    _check(first, second, images)
    design, seeds = _design(first, second)
    one, two = _stack(first, seeds[0]), _stack(second, seeds[1])
    components = unpaired_components(one, two, images) if design == "unpaired" else paired_components(one - two, images)
    num_images, num_questions = len(np.unique(images)), len(images)
    enough = min(num_images, num_questions) >= FEWEST_FOR_INTERVAL
    tellable = num_images >= FEWEST_IMAGES_FOR_P and design != "checkpoints"
    return Comparison(
        difference=components.difference,
        half_width=half_width(components.parts) if enough else None,
        p=p_value(components.difference, components.parts) if tellable else None,
        design=design,
        seeds=seeds,
        num_images=num_images,
        num_questions=num_questions,
    )


def paired_components(differences: Floats, images: Codes) -> Components:
    """Variance components of a mean of differences over the same seeds and questions.

    Args:
        differences: [seed, question], first minus second.
        images: image number of every question.

    Returns:
        With two seeds or more: parts for seeds and for images, where the noise common to both counts once. With one: images alone.
    """
    num_seeds, num_questions = differences.shape
    by_seed: Floats = differences.mean(axis=1)
    residuals = _image_totals(differences - by_seed[:, None], images)
    mean_residuals: Floats = residuals.mean(axis=0)
    num_images = residuals.shape[1]
    scale = num_images / max(num_images - 1, 1) / num_questions**2
    image_variance = scale * float(np.sum(mean_residuals**2))
    floor = 1 / num_questions**2
    image_freedom = max(num_images - 1, 1)
    difference = float(by_seed.mean())
    if num_seeds == 1:
        return Components(difference, (difference,), (Part(image_variance + floor, image_freedom),))
    pairs = num_seeds * (num_seeds - 1)
    seed_variance = float(np.sum((by_seed - difference) ** 2)) / pairs
    common_noise = scale * float(np.sum((residuals - mean_residuals) ** 2)) / pairs
    parts = (Part(seed_variance, num_seeds - 1), Part(max(image_variance - common_noise, 0.0) + floor, image_freedom))
    return Components(difference, tuple(by_seed.tolist()), parts)


def unpaired_components(first: Floats, second: Floats, images: Codes) -> Components:
    """Variance components of a difference of means over unequal seeds, at least two on either side.

    Args:
        first: [seed, question] scores of one loss.
        second: the same of the other loss, on the same questions.
        images: image number of every question.

    Returns:
        Parts for the seeds of the first, of the second, and for the images.
    """
    num_questions = first.shape[1]
    means = first.mean(axis=1), second.mean(axis=1)
    totals = [_image_totals(scores - mean[:, None], images) for scores, mean in zip((first, second), means, strict=True)]
    num_images = totals[0].shape[1]
    scale = num_images / max(num_images - 1, 1) / num_questions**2
    own = [_between_seeds(total, scale) for total in totals]
    shared = scale * float(np.sum(totals[0].mean(axis=0) * totals[1].mean(axis=0)))
    image_variance = max(own[0] + own[1] - 2 * shared, 0.0) + 1 / num_questions**2
    seed_parts = [Part(float(np.var(mean, ddof=1)) / len(mean), len(mean) - 1) for mean in means]
    difference = float(means[0].mean() - means[1].mean())
    return Components(difference, (), (*seed_parts, Part(image_variance, max(num_images - 1, 1))))


def _between_seeds(totals: Floats, scale: float) -> float:
    """Mean covariance over images between different seeds of one loss."""
    num_seeds = totals.shape[0]
    sums: Floats = totals.sum(axis=0)
    return scale * float(np.sum(sums**2) - np.sum(totals**2)) / (num_seeds * (num_seeds - 1))


def _image_totals(values: Floats, images: Codes) -> Floats:
    """Sums over the questions of each image: [seed, image]."""
    codes: Codes = np.unique(images, return_inverse=True)[1]
    return np.stack([np.bincount(codes, weights=row).astype(np.float64) for row in values])


def _design(first: Scored, second: Scored) -> tuple[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    ours, theirs = sorted(first.scores), sorted(second.scores)
    if first.deterministic or second.deterministic:
        seeds = (() if first.deterministic else tuple(ours), () if second.deterministic else tuple(theirs))
        return ("paired" if max(map(len, seeds)) > 1 else "checkpoints"), seeds
    common = tuple(seed for seed in ours if seed in second.scores)
    if len(common) >= 2 and 4 * len(common) >= 3 * max(len(ours), len(theirs)):
        return "paired", (common, common)
    if min(len(ours), len(theirs)) >= 2:
        return "unpaired", (tuple(ours), tuple(theirs))
    return "checkpoints", (((common[0],), (common[0],)) if common else ((ours[0],), (theirs[0],)))


def _stack(scored: Scored, seeds: tuple[int, ...]) -> Floats:
    """[seed, question]; a deterministic side has one row, which numpy broadcasts over the other side's seeds."""
    return np.stack([scored.scores[seed] for seed in (seeds or tuple(scored.scores))])


def _check(first: Scored, second: Scored, images: Codes) -> None:
    for scored in (first, second):
        if not scored.scores or (scored.deterministic and len(scored.scores) != 1):
            raise ValueError("a comparison needs scores of at least one seed on either side, and exactly one of a deterministic side")
        for seed, scores in scored.scores.items():
            if scores.shape != images.shape:
                raise ValueError(f"seed {seed} has {scores.shape} scores for {images.shape} questions")
            if not np.all((scores >= 0) & (scores <= 1)):
                raise ValueError(f"seed {seed} has a score outside [0, 1]")
