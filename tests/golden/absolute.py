"""Golden numbers of objectives/absolute.py; softplus(x) = log(1 + exp(x)), s(x) = 1 / (1 + exp(-x)), h = a - b."""

from loss_world import THREE, A, B, C, Golden

BETA = ("loss.beta=0.1",)
RELEASED = (*BETA, "loss.calibration_weight=0.5")
MILD = (*BETA, "loss.penalty=5")
GOLDENS = {
    # s(-.1 a) + s(.1 b): A s(-.1) + s(-.05) = .475021 + .487503
    "apo_zero A": Golden("apo_zero", A, [0.962523], rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "apo_zero B": Golden("apo_zero", B, [0.947556]),
    "apo_zero C": Golden("apo_zero", C, [0.992534], rewards={"chosen": [-0.12], "rejected": [-0.15]}),
    "apo_zero three": Golden("apo_zero", THREE, [0.962523, 1.017497, 0.960025]),
    # s(.1 a) + s(-.1 h): A s(.1) + s(-.15) = .524979 + .462570
    "apo_down A": Golden("apo_down", A, [0.987549], rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "apo_down B": Golden("apo_down", B, [0.980146]),
    "apo_down C": Golden("apo_down", C, [0.962537]),
    "apo_down three": Golden("apo_down", THREE, [0.987549, 1.004995, 0.975081]),
    # softplus(-x) + softplus(x) / 2 + softplus(y) / 2 with x = beta a, y = beta b: at .1, then at the default .01
    "nca A, beta .1": Golden("nca", A, [1.350825], BETA, rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "nca B, beta .1": Golden("nca", B, [1.337361], BETA),
    "nca C": Golden("nca", C, [1.385585], rewards={"chosen": [-0.012], "rejected": [-0.015]}),
    "nca three": Golden("nca", THREE, [1.382565, 1.388049, 1.382307]),
    # (a - 5)^2 + (b + 5)^2: 16 + 20.25, 13.69 + 17.64; at the default .001 (a - 500)^2 + (b + 500)^2
    "sppo_hard A, beta .1": Golden("sppo_hard", A, [36.25], BETA, rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "sppo_hard B, beta .1": Golden("sppo_hard", B, [31.33], BETA),
    "sppo_hard three, beta .1": Golden("sppo_hard", THREE, [36.25, 57.29, 35.36], BETA),
    "sppo_hard C": Golden("sppo_hard", C, [499703.69], rewards={"chosen": [-0.0012], "rejected": [-0.0015]}),
    # softplus(-h) + weight ((a - 5)^2 + (b + 5)^2), weight 1 and, as released, .5: A .201413 + 36.25; the three pairs' mean is 21.979500
    "cal_dpo A, weight 1, beta .1": Golden("cal_dpo", A, [36.451413], BETA, rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "cal_dpo B, weight 1, beta .1": Golden("cal_dpo", B, [31.445520], BETA),
    "cal_dpo A, released": Golden("cal_dpo", A, [18.326413], RELEASED),
    "cal_dpo B, released": Golden("cal_dpo", B, [15.780520], RELEASED),
    "cal_dpo three, released": Golden("cal_dpo", THREE, [18.326413, 29.748186, 17.863901], RELEASED),
    # .554355 + 501.2^2 + 498.5^2
    "cal_dpo C": Golden("cal_dpo", C, [499704.244355], rewards={"chosen": [-0.0012], "rejected": [-0.0015]}),
    # softplus(-.1 (h - 5 max(0, -a))): no penalty where a > 0; C .3 - 6 = -5.7; three 1.5, -.7 - 2.5, 1.6
    "dpop A": Golden("dpop", A, [0.620957], MILD, rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "dpop B": Golden("dpop", B, [0.593650], MILD),
    "dpop C": Golden("dpop", C, [1.018222], MILD, rewards={"chosen": [-0.72], "rejected": [-0.15]}),
    "dpop three": Golden("dpop", THREE, [0.620957, 0.865893, 0.616344], MILD),
    # softplus(-.3 (.3 - 60)): the exponential of 17.91 leaves log(1 + exp(-17.91)) = 1.7e-8 behind
    "dpop C, penalty 50": Golden("dpop", C, [17.91]),
}
# Mutants that are the same function, each with its reason.
EQUIVALENT = {
    "operands swapped in `chosen_ratio - 1 / (2 * beta)`": "(x - y) ** 2 is (y - x) ** 2",
}
