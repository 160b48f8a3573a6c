"""Golden numbers of objectives/kto.py and its estimators; s(x) = 1 / (1 + exp(-x))."""

from typing import Any

from loss_world import THREE, A, B, Batch, C, Golden

DESIRABLE: dict[str, Any] = {"facts": {"chosen_present": [1], "rejected_present": [0]}}
UNDESIRABLE: dict[str, Any] = {"facts": {"chosen_present": [0], "rejected_present": [1]}}
WEIGHTS = ("loss.desirable_weight=1.2", "loss.undesirable_weight=0.8")
# Policy and reference of the unmatched answers exchanged: their mean log-ratio is -.1.
NEGATIVE = {"policy_unmatched_logps": [-30.0, -25.6, -28.3], "reference_unmatched_logps": [-30.2, -25.0, -28.4]}

EXCHANGED = {
    "policy_chosen_logps": [-11, -7.5, -15.6], "policy_rejected_logps": [-11.5, -9.2, -13],
    "reference_chosen_logps": [-10, -8, -15], "reference_rejected_logps": [-12, -9, -14],
}  # fmt: skip


def kto(batch: Batch, expected: list[float], z0: float | None, *overrides: str, **more: Any) -> Golden:
    fixed = () if z0 is None else (f"loss.unmatched_kl={z0}",)
    return Golden("kto", batch, expected, (*fixed, *overrides), **more)


GOLDENS = {
    # one answer: 1 - s(.1 (a - z0)) or 1 - s(.1 (z0 - b)); a pair: the average of its two
    "kto desirable A": kto(A, [0.475021], 0.0, **DESIRABLE),
    "kto undesirable A": kto(A, [0.487503], 0.0, **UNDESIRABLE),
    "kto desirable A, z0 .4": kto(A, [0.485004], 0.4, **DESIRABLE),
    "kto undesirable A, z0 .4": kto(A, [0.477515], 0.4, **UNDESIRABLE),
    "kto desirable B": kto(B, [0.467546], 0.0, **DESIRABLE),
    "kto undesirable B": kto(B, [0.480011], 0.0, **UNDESIRABLE),
    "kto desirable B, z0 .4": kto(B, [0.477515], 0.4, **DESIRABLE),
    "kto undesirable B, z0 .4": kto(B, [0.470036], 0.4, **UNDESIRABLE),
    "kto pair A": kto(A, [(0.475021 + 0.487503) / 2], 0.0, rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "kto desirable C, weight 1.2": kto(C, [0.643424], 0.25, *WEIGHTS, **DESIRABLE),
    "kto undesirable C, weight .8": kto(C, [0.365089], 0.25, *WEIGHTS, **UNDESIRABLE),
    # z0 = .1 from the unmatched answers; the mean over the six answers is .490008
    "kto three, estimated": kto(THREE, [0.481260, 0.508748, 0.480015], None),
    # a negative average counts as 0: averages of 1 - s(.1 a) and 1 - s(-.1 b): .475021 .487503, .512497 .505000, .485004 .475021
    "kto three, clamped": kto(THREE, [0.481262, 0.508749, 0.480013], None, tensors=NEGATIVE),
    # averages of 1 - s(.1 (a - K_l)) and 1 - s(.1 (K_w - b)): K_w = 1, 1.3, 0 and .366667, K_l = 0 everywhere
    "kto_pair A": Golden("kto_pair", A, [0.468795], rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "kto_pair B": Golden("kto_pair", B, [0.457619]),
    "kto_pair C": Golden("kto_pair", C, [0.496267]),
    "kto_pair three": Golden("kto_pair", THREE, [0.476684, 0.504165, 0.475445]),  # mean .485432
    # policy and reference exchanged: K_w = 0, K_l = .433333
    "kto_pair three, exchanged": Golden("kto_pair", THREE, [0.524135, 0.496667, 0.525395], tensors=EXCHANGED),
}
EQUIVALENT: dict[str, str] = {}
