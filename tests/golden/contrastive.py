"""Golden numbers of objectives/contrastive.py. The sets A, B, C and three pairs stand in loss_world; softplus(x) = log(1 + exp(x))."""

from loss_world import THREE, A, B, C, Golden

GOLDENS = {
    # softplus(-.1 (a - b)): margins 1.5, 2.1, .3 and 1.5, -.7, 1.6 (mean loss .655353); rewards .1 a and .1 b
    "dpo A": Golden("dpo", A, [0.620957], rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "dpo B": Golden("dpo", B, [0.593650], rewards={"chosen": [0.13], "rejected": [-0.08]}),
    "dpo C": Golden("dpo", C, [0.678260], rewards={"chosen": [-0.12], "rejected": [-0.15]}),
    "dpo three": Golden("dpo", THREE, [0.620957, 0.728760, 0.616344]),
    # (mean-log-ratio margin - 5)^2: .2 + .083333 = .283333; .26 + .1 = .36; -.24 + .214286 = -.025714;
    # -.125 - .04 = -.165; .075 + .142857 = .217857
    "ipo A": Golden("ipo", A, [22.246944], rewards={"chosen": [0.02], "rejected": [-0.1 / 12]}),
    "ipo B": Golden("ipo", B, [21.529600], rewards={"chosen": [0.026], "rejected": [-0.01]}),
    "ipo C": Golden("ipo", C, [25.257804], rewards={"chosen": [-0.024], "rejected": [-0.15 / 7]}),
    "ipo three": Golden("ipo", THREE, [22.246944, 26.677225, 22.868890]),
}
# Mutants that are the same function, each with its reason.
EQUIVALENT = {
    "operands swapped in `chosen_ratio - rejected_ratio - 1 / (2 * beta)`": "(x - y) ** 2 is (y - x) ** 2",
}
