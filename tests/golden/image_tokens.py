"""Golden numbers of the sums on objectives/image_tokens.py; softplus(x) = log(1 + exp(x)).

Log-ratios of hallucinated tokens: set A -.5, B -.9, C .7. Of top wrong tokens on C: rejected answer -.3, other image .6.
"""

from loss_world import THREE, A, B, C, Golden

# Top wrong tokens for set B: log-ratios -.4 of the rejected answer and .5 on the other image.
TOP_WRONG = {
    "policy_rejected_top_wrong_logps": [-10.4], "reference_rejected_top_wrong_logps": [-10.0],
    "policy_chosen_corrupt_top_wrong_logps": [-8.0], "reference_chosen_corrupt_top_wrong_logps": [-8.5],
}  # fmt: skip
# The three pairs with hallucinated tokens whose log-ratios are .2, -.1, -.3.
HALLUCINATED = {
    "policy_chosen_hallucinated_logps": [-12.0, -9.0, -17.0],
    "reference_chosen_hallucinated_logps": [-12.2, -8.9, -16.7],
}

GOLDENS = {
    # half of softplus(-.1 (a - e)) and half of dpo: A .620957 and the same, B .589185 and .593650, C .792655 and .678260
    "povid A": Golden("povid", A, [0.620957]),
    "povid B": Golden("povid", B, [0.591417], rewards={"chosen": [0.13], "rejected": [-0.08]}),
    "povid C": Golden("povid", C, [0.735456]),
    # arguments .8, -.4, .9 and 1.5, -.7, 1.6, times .1: half of .653947 + .620957, .713347 + .728760, .649159 + .616344
    "povid three": Golden("povid", THREE, [0.637452, 0.721053, 0.632752], tensors=HALLUCINATED),
    "povid C, hallucination alone": Golden(
        "povid", C, [0.792653], ("loss.weights.hallucination_dpo=1.0", "loss.weights.dpo=0.0"), rewards={"chosen": [-0.12]}
    ),
    # softplus(.09) + softplus(.18) on C, softplus(-.17) + softplus(-.08) on B
    "re_align_rdpo_released B": Golden(
        "re_align_rdpo_released", B, [1.265702],
        rewards={"chosen": [0.13], "rejected": [-0.04], "chosen_corrupt": [0.05]}, tensors=TOP_WRONG,
    ),
    "re_align_rdpo_released C": Golden(
        "re_align_rdpo_released", C, [1.526351], rewards={"chosen": [-0.12], "rejected": [-0.03], "chosen_corrupt": [0.06]}
    ),
}  # fmt: skip
EQUIVALENT: dict[str, str] = {}
