"""Golden numbers of objectives/token_kl.py; softplus(x) = log(1 + exp(x)), d = K_l - K_w the difference of the divergences."""

from typing import Any

from loss_world import THREE, A, B, C, Golden

# The three pairs as answers of one token: which of them are changed, corrupted images with c = .2, -.1, -.3, and d = .2, .3, -.1.
ONE_TOKEN: dict[str, Any] = {
    "tensors": {
        **{f"{head}_token_logps": [[total] for total in totals] for head, totals in THREE.sums.items() if "unmatched" not in head},
        "policy_chosen_corrupt_logps": [-12.0, -9.0, -17.0], "reference_chosen_corrupt_logps": [-12.2, -8.9, -16.7],
        "policy_chosen_forward_kl": [0.3, 0.1, 0.3], "policy_rejected_forward_kl": [0.5, 0.4, 0.2],
    },
    "facts": {"chosen_changed_mask": [[1], [1], [0]], "rejected_changed_mask": [[0], [1], [0]]},
}  # fmt: skip

GOLDENS = {
    # softplus(-.1 (h - d)): A h 1.5, d .2; B 2.1 - .2 = 1.9; C .3 - .5 = -.2. Rewards .1 (1 + .3), .1 (-.5 + .5); C .1 (-1.2 + .4)
    "tdpo1 A": Golden("tdpo1", A, [0.630258], rewards={"chosen": [0.13], "rejected": [0.0]}),
    "tdpo1 B": Golden("tdpo1", B, [0.602653], rewards={"chosen": [0.16], "rejected": [-0.03]}),
    "tdpo1 C": Golden("tdpo1", C, [0.703197], rewards={"chosen": [-0.08], "rejected": [-0.06]}),
    # softplus(-.1 (h - .5 d)): arguments .14, .2, .005; at weight 0 that of dpo, at weight 1 that of tdpo1
    "tdpo2 A": Golden("tdpo2", A, [0.625595], rewards={"chosen": [0.13], "rejected": [0.0]}),
    "tdpo2 B": Golden("tdpo2", B, [0.598139], rewards={"chosen": [0.16], "rejected": [-0.03]}),
    "tdpo2 C": Golden("tdpo2", C, [0.690650], rewards={"chosen": [-0.08], "rejected": [-0.06]}),
    "tdpo2 A, weight 0": Golden("tdpo2", A, [0.620957], ("loss.kl_weight=0",)),
    "tdpo2 C, weight 1": Golden("tdpo2", C, [0.703197], ("loss.kl_weight=1",)),
    # dpo + ddpo_sum + .1 x .1 d + copo: A .620957 + .485509 + .002 + .620957; B .593650 + .332574 + .002 + .589185;
    # C .678260 + .550112 + .005 + softplus(-.1 (-1.2 + 1.3)) = .688160
    "chip A": Golden("chip", A, [1.729423]),
    "chip B": Golden("chip", B, [1.517409]),
    "chip C": Golden("chip", C, [1.921531], rewards={"chosen": [-0.12], "rejected": [-0.15]}),
    # ddpo_sum arguments 5 + .5, -2.5 - 1, .6 + 1: .620957 + .455492 + .002 + .653947 and so on
    "chip three": Golden("chip", THREE, [1.732396, 2.328489, 1.880847], **ONE_TOKEN),
    # beta .2 in all four: C softplus(-.06) + softplus(-.62) + .01 + softplus(-.02)
    "chip C, beta .2": Golden("chip", C, [1.787241], ("loss.beta=0.2",)),
}
EQUIVALENT: dict[str, str] = {}
