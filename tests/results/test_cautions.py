"""Warnings beside numbers: exactly when there is reason."""

from typing import Any

import pytest

from medvlm_dpo.results.cautions import length_cautions, training_cautions


def changes(chosen: float, rejected: float, split: str = "validation") -> dict[str, float]:
    return {f"{split}/chosen_logps_change": chosen, f"{split}/rejected_logps_change": rejected}


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (
            changes(-0.5, -3.0),
            ["both likelihoods fell: log-probabilities of the validation pairs changed by -0.50 nats (chosen) and -3.00"],
        ),
        (changes(-3.0, -0.5, "train"), ["both likelihoods fell: log-probabilities of the train pairs changed by -3.00 nats"]),
        ({**changes(-3.0, -0.5, "train"), **changes(1.0, -0.5)}, []),  # the validation is believed
        (changes(-0.05, -3.0), []),
        (changes(0.5, -3.0), []),
        (changes(-0.5, 3.0), []),
        ({}, []),
        ({"validation/length_r2": 0.5}, ["length alone explains 50 % of the variance"]),
        ({"validation/length_r2": 0.49}, []),
        ({**changes(-1.0, -1.0), "validation/length_r2": 0.9}, ["both likelihoods fell", "length alone explains 90 %"]),
    ],
)
def test_training_cautions(metrics: dict[str, float], words: list[str]) -> None:
    found = training_cautions(metrics)
    assert len(found) == len(words)
    assert all(sentence.startswith(start) for sentence, start in zip(found, words, strict=True))


def test_whether_the_preference_was_gained_is_said() -> None:
    assert training_cautions(changes(-0.5, -3.0))[0].endswith("(rejected); the margin grew although the chosen answer became unlikelier")
    assert training_cautions(changes(-8.84, -4.33))[0].endswith("(rejected); the preference was lost")


def scores(length: float | None) -> dict[str, Any]:
    return {"answers": {"mean_num_tokens": length}}


@pytest.mark.parametrize(
    ("length", "start", "warns"), [(10.0, 10.0, False), (12.5, 10.0, False), (12.6, 10.0, True), (8.0, 10.0, False), (7.9, 10.0, True)]
)
def test_lengths_drift_beyond_a_quarter(length: float, start: float, warns: bool) -> None:
    found = length_cautions(scores(length), scores(start))
    assert bool(found) == warns
    assert all(f"{length:.1f} tokens on average, those of the starting model {start:.1f}" in sentence for sentence in found)


@pytest.mark.parametrize(
    ("own", "start"), [(scores(None), scores(3.0)), (scores(3.0), {}), (scores(0.0), scores(3.0)), (scores(3.0), scores(0.0))]
)
def test_nothing_is_said_where_nothing_is_known(own: dict[str, Any], start: dict[str, Any]) -> None:
    assert length_cautions(own, start) == []
