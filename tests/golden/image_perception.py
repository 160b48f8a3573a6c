"""Golden numbers of objectives/image_perception.py."""

import math

from loss_world import A, B, Batch, C, Golden


def masked(batch: Batch, values: list[float]) -> dict[str, list[list[float]]]:
    """Log-probabilities of the chosen tokens on the corrupted image, padded to the batch's width."""
    width = max(*batch.lengths["chosen"], *batch.lengths["rejected"])
    return {"detached_policy_chosen_corrupt_token_logps": [values + [0.0] * (width - len(values))]}


# The values that the reference has on the true image stand for the policy's on the corrupted one.
MASKED_A, MASKED_B = masked(A, [-1.2, -3.1, -2.4, -1.8, -2.5]), masked(B, [-1.2, -3, -2.4, -1.9, -2.5])

GOLDENS = {
    # divergences .05 .3 .1 .02 .4, limited to .2: -(.05 + .2 + .1 + .02 + .2) / 5; unlimited -.87 / 5; limited to .06: -.25 / 5
    "perception C": Golden("perception", C, [-0.114]),
    "perception C, no limit": Golden("perception", C, [-0.174], ("loss.max_kl=5.0",)),
    "perception C, limit .06": Golden("perception", C, [-0.05], ("loss.max_kl=0.06",)),
    # mean of exp(u) - u - 1: A u = -.2 -.1 -.4 -.3 0, B u = -.3 -.2 -.3 -.3 -.2
    "perception_k3 A": Golden("perception_k3", A, [-0.026941], tensors=MASKED_A),
    "perception_k3 B": Golden("perception_k3", B, [-0.031983], tensors=MASKED_B),
    # C u = -.5 -.7 -.2 -.7 -.1: .106531 .196585 .018731 .196585 .004837, limited to .1 or not
    "perception_k3 C": Golden("perception_k3", C, [-0.104654]),
    "perception_k3 C, limit .1": Golden("perception_k3", C, [-0.064714], ("loss.max_kl=0.1",)),
    # one token with u = 25 or -25 counts as 20 or -20, the others have u = 0
    "perception_k3 C, u 25": Golden(
        "perception_k3", C, [-(math.exp(20) - 21) / 5], ("loss.max_kl=1e9",), tensors=masked(C, [23.6, -2.6, -2.2, -1.9, -3.1])
    ),
    "perception_k3 C, u -25": Golden(
        "perception_k3", C, [-(math.exp(-20) + 19) / 5], ("loss.max_kl=30.0",), tensors=masked(C, [-26.4, -2.6, -2.2, -1.9, -3.1])
    ),
}
EQUIVALENT: dict[str, str] = {}
