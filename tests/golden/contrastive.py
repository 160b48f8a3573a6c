"""Golden numbers of objectives/contrastive.py. The sets A, B, C and three pairs stand in loss_world; softplus(x) = log(1 + exp(x))."""

from loss_world import THREE, A, B, C, Golden

BETA = ("loss.beta=0.1",)
GOLDENS = {
    # softplus(-.1 (a - b)): margins 1.5, 2.1, .3 and 1.5, -.7, 1.6 (mean loss .655353); rewards .1 a and .1 b
    "dpo A": Golden("dpo", A, [0.620957], rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "dpo B": Golden("dpo", B, [0.593650], rewards={"chosen": [0.13], "rejected": [-0.08]}),
    "dpo C": Golden("dpo", C, [0.678260], rewards={"chosen": [-0.12], "rejected": [-0.15]}),
    "dpo three": Golden("dpo", THREE, [0.620957, 0.728760, 0.616344]),
    # dpo at beta .05: softplus(-.05 (a - b)), softplus(-.075) for A; the moving reference changes where R comes from, not the function
    "tr_dpo A": Golden("tr_dpo", A, [0.656350], rewards={"chosen": [0.05], "rejected": [-0.025]}),
    "tr_dpo B": Golden("tr_dpo", B, [0.642025]),
    "tr_dpo C": Golden("tr_dpo", C, [0.685675]),
    "tr_dpo three": Golden("tr_dpo", THREE, [0.656350, 0.710800, 0.653947]),
    # (mean-log-ratio margin - 5)^2: .2 + .083333 = .283333; .26 + .1 = .36; -.24 + .214286 = -.025714;
    # -.125 - .04 = -.165; .075 + .142857 = .217857
    "ipo A": Golden("ipo", A, [22.246944], rewards={"chosen": [0.02], "rejected": [-0.1 / 12]}),
    "ipo B": Golden("ipo", B, [21.529600], rewards={"chosen": [0.026], "rejected": [-0.01]}),
    "ipo C": Golden("ipo", C, [25.257804], rewards={"chosen": [-0.024], "rejected": [-0.15 / 7]}),
    "ipo three": Golden("ipo", THREE, [22.246944, 26.677225, 22.868890]),
    # (a - b - 5)^2: 3.5^2, 2.9^2, 4.7^2 and 3.5^2, 5.7^2, 3.4^2
    "ipo_sum A": Golden("ipo_sum", A, [12.25], rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "ipo_sum B": Golden("ipo_sum", B, [8.41]),
    "ipo_sum C": Golden("ipo_sum", C, [22.09], rewards={"chosen": [-0.12], "rejected": [-0.15]}),
    "ipo_sum three": Golden("ipo_sum", THREE, [12.25, 32.49, 11.56]),
    # softplus(-beta m) with the margins m of ipo, at beta .1 and at 5: softplus(-1.416667), softplus(-1.8), softplus(.128571)
    "dpo_norm A, beta .1": Golden("dpo_norm", A, [0.679081], BETA, rewards={"chosen": [0.02], "rejected": [-0.1 / 12]}),
    "dpo_norm B, beta .1": Golden("dpo_norm", B, [0.675309], BETA),
    "dpo_norm A": Golden("dpo_norm", A, [0.217142]),
    "dpo_norm B": Golden("dpo_norm", B, [0.152978]),
    "dpo_norm C": Golden("dpo_norm", C, [0.759498], rewards={"chosen": [-1.2], "rejected": [-7.5 / 7]}),
    "dpo_norm three": Golden("dpo_norm", THREE, [0.217142, 1.188417, 0.290022]),
    # dpo plus flip_rate * .1 h, since softplus(x) - softplus(-x) = x: .620957 + .1 * .15
    "cdpo A": Golden("cdpo", A, [0.635957], rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "cdpo B": Golden("cdpo", B, [0.614650]),
    "cdpo C": Golden("cdpo", C, [0.681260]),
    "cdpo three, flip rate .2": Golden("cdpo", THREE, [0.650957, 0.714760, 0.648344], ("loss.flip_rate=0.2",)),
    # dpo minus flip_rate / (1 - 2 flip_rate) * .1 h: .620957 - .125 * .15; at flip rate .3 minus .75 * .1 h
    "robust_dpo A": Golden("robust_dpo", A, [0.602207], rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "robust_dpo B": Golden("robust_dpo", B, [0.567400]),
    "robust_dpo C": Golden("robust_dpo", C, [0.674510]),
    "robust_dpo three, flip rate .3": Golden("robust_dpo", THREE, [0.508457, 0.781260, 0.496344], ("loss.flip_rate=0.3",)),
    # max(0, 1 - beta h): at .1, at the default .05, and at 1, where margins above 1 cost nothing
    "hinge A": Golden("hinge", A, [0.85], BETA, rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "hinge B": Golden("hinge", B, [0.79], BETA),
    "hinge C": Golden("hinge", C, [0.985]),
    "hinge three, beta 1": Golden("hinge", THREE, [0, 1.7, 0], ("loss.beta=1",)),
}
# Mutants that are the same function, each with its reason.
EQUIVALENT = {
    "operands swapped in `chosen_ratio - rejected_ratio - 1 / (2 * beta)`": "(x - y) ** 2 is (y - x) ** 2",
}
