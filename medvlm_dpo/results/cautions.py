"""What must be said beside the numbers of a cell: sentences for the log, the result and the table."""

from collections.abc import Mapping
from typing import Any

from medvlm_dpo.metrics import CHOSEN_LOGPS_CHANGE, LENGTH_R2, REJECTED_LOGPS_CHANGE, TRAIN, VALIDATION, metric

FALL_NATS = 0.1  # a smaller fall of a mean log-probability is not worth a warning
EXPLAINED_SHARE = 0.5  # of the variance of the margin
LENGTH_FACTOR = 1.25  # longer or shorter than the starting model's answers by this factor


def training_cautions(metrics: Mapping[str, float]) -> list[str]:
    """Warnings that follow from a finished training: both likelihoods fell, or length alone explains the preference.

    Args:
        metrics: by full name, after the last step. Where nothing was validated, the training's own means serve.
    """
    split = VALIDATION if metric(VALIDATION, CHOSEN_LOGPS_CHANGE) in metrics else TRAIN
    chosen, rejected = (metrics.get(metric(split, name), 0.0) for name in (CHOSEN_LOGPS_CHANGE, REJECTED_LOGPS_CHANGE))
    cautions: list[str] = []
    if max(chosen, rejected) < -FALL_NATS:
        outcome = "the margin grew although the chosen answer became unlikelier" if chosen > rejected else "the preference was lost"
        cautions.append(
            f"both likelihoods fell: log-probabilities of the {split} pairs changed by {chosen:+.2f} nats (chosen) and {rejected:+.2f} "
            f"(rejected); {outcome}"
        )
    explained = metrics.get(metric(VALIDATION, LENGTH_R2), 0.0)
    if explained >= EXPLAINED_SHARE:
        cautions.append(
            f"length alone explains {100 * explained:.0f} % of the variance of the preference margin over the validation pairs; "
            "the loss may have learnt length, not content"
        )
    return cautions


def length_cautions(scores: Mapping[str, Any], start: Mapping[str, Any]) -> list[str]:
    """A warning when answers became much longer or shorter than those of the starting model on the same questions.

    Args:
        scores: the content of the cell's scores.json, or the part that is known before it is written.
        start: the same of the starting model.
    """
    length, before = (document.get("answers", {}).get("mean_num_tokens") for document in (scores, start))
    if not length or not before or 1 / LENGTH_FACTOR <= length / before <= LENGTH_FACTOR:
        return []
    return [
        f"lengths drifted: generated answers have {length:.1f} tokens on average, those of the starting model {before:.1f} "
        f"({length / before:.2f} times)"
    ]
