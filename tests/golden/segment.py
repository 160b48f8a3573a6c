"""Golden numbers of objectives/segment.py, whose sums weigh changed tokens; softplus(x) = log(1 + exp(x)).

Log-ratios of tokens, changed ones in brackets: A chosen .2 .1 .4 [.3 0] (sum 1), rejected .2 -.4 .2 [-.6 -.2 .3] (-.5);
B chosen .3 .2 [.3 .3] .2 (1.3), rejected .3 .2 [-.4 -.2 -.4 -.2] -.2 .1 (-.8);
C chosen -.2 [-.2 -.1] -.2 -.5 (-1.2), rejected .2 [-.2 -.2 -.6] .1 -.5 -.3 (-1.5), corrupted -.3 [-.3 0] -.5 -.2 (-1.3).
"""

from loss_world import A, B, C, Golden

# The sums -13, -12.5 and -13.2, -12.3 of the corrupted image, spread over the five tokens; the rows end in padding.
CORRUPT_A = {
    "policy_chosen_corrupt_token_logps": [[-2.2, -3.1, -2.8, -2.4, -2.5, 0]],
    "reference_chosen_corrupt_token_logps": [[-2.1, -3, -2.6, -2.3, -2.5, 0]],
}
CORRUPT_B = {
    "policy_chosen_corrupt_token_logps": [[-2.2, -3.1, -2.9, -2.5, -2.5, 0, 0, 0]],
    "reference_chosen_corrupt_token_logps": [[-2.1, -3, -2.6, -2.2, -2.4, 0, 0, 0]],
}
UNWEIGHTED = ("loss.segment_weight=1",)
WITHOUT_TOKENS = (*UNWEIGHTED, "loss.token_weight=0")
GOLDENS = {
    # A (.7 + 5 x .3) / 13 = .169231, (0 - 5 x .5) / 18 = -.138889; B (.7 + 5 x .6) / 13 = .284615, (.4 - 5 x 1.2) / 24 = -.233333
    "ddpo A": Golden("ddpo", A, [0.677860], rewards={"chosen": [0.1 * 2.2 / 13], "rejected": [-0.1 * 2.5 / 18]}),
    "ddpo B": Golden("ddpo", B, [0.667585], rewards={"chosen": [0.1 * 3.7 / 13], "rejected": [-0.1 * 5.6 / 24]}),
    # C (-.9 - 5 x .3) / 13 = -.184615, (-.5 - 5 x 1) / 19 = -.289474
    "ddpo C": Golden("ddpo", C, [0.687918], rewards={"chosen": [-0.1 * 2.4 / 13], "rejected": [-0.1 * 5.5 / 19]}),
    # the same without the divisors: 2.2 + 2.5 = 4.7; 3.7 + 5.6 = 9.3; -2.4 + 5.5 = 3.1; at weight 1 the arguments of dpo
    "ddpo_sum A": Golden("ddpo_sum", A, [0.485509], rewards={"chosen": [0.22], "rejected": [-0.25]}),
    "ddpo_sum B": Golden("ddpo_sum", B, [0.332574], rewards={"chosen": [0.37], "rejected": [-0.56]}),
    "ddpo_sum C": Golden("ddpo_sum", C, [0.550112], rewards={"chosen": [-0.24], "rejected": [-0.55]}),
    "ddpo_sum A, weight 1": Golden("ddpo_sum", A, [0.620957], UNWEIGHTED),
    # softplus(-.1 (h + (a - c) - .1 d)): A 1.5 + 1.5 - .02; B 2.1 + 2.2 - .02
    "chip_released A": Golden("chip_released", A, [0.555207], UNWEIGHTED, {"chosen": [0.13], "rejected": [0.0]}, CORRUPT_A),
    "chip_released B": Golden("chip_released", B, [0.501873], UNWEIGHTED, {"chosen": [0.16], "rejected": [-0.03]}, CORRUPT_B),
    "chip_released A, no token term": Golden("chip_released", A, [0.554355], WITHOUT_TOKENS, tensors=CORRUPT_A),
    "chip_released B, no token term": Golden("chip_released", B, [0.501084], WITHOUT_TOKENS, tensors=CORRUPT_B),
    # C, weight 4: -.9 - 1.2 = -2.1, -.5 - 4 = -4.5, -1 - 1.2 = -2.2; 2.4 + .1 - .05 = 2.45; rewards .1 (-2.1 + .4), .1 (-4.5 + .9)
    "chip_released C": Golden("chip_released", C, [0.578132], rewards={"chosen": [-0.17], "rejected": [-0.36]}),
}
EQUIVALENT: dict[str, str] = {}
