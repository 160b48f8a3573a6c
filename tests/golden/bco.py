"""Golden numbers of objectives/bco.py and its running mean, of which these are the first steps; softplus(x) = log(1 + exp(x))."""

from loss_world import THREE, A, B, C, Golden

BETA = ("loss.beta=0.1",)
UNSHIFTED = (*BETA, "loss.mean_logratio=0.0")
LONE = {"chosen_present": [1, 1, 1], "rejected_present": [1, 0, 0]}
ABSENT = {"chosen_present": [1, 1, 0], "rejected_present": [1, 0, 1]}
GOLDENS = {
    # softplus(-.1 (a - m)) + softplus(.1 (b - m)), m the mean of a and b: .25, .25, -1.35, and -.0333333 over the three pairs
    "bco_pair A": Golden("bco_pair", A, [1.312700], BETA, rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "bco_pair B": Golden("bco_pair", B, [1.284049], BETA),
    "bco_pair C": Golden("bco_pair", C, [1.371351], BETA),
    "bco_pair three": Golden("bco_pair", THREE, [1.312901, 1.421635, 1.307963], BETA),  # mean 1.347500
    "bco_pair three, beta .01": Golden("bco_pair", THREE, [1.378810, 1.389798, 1.378311]),
    "bco_pair A, no shift": Golden("bco_pair", A, [1.312856], UNSHIFTED),
    "bco_pair B, no shift": Golden("bco_pair", B, [1.284205], UNSHIFTED),
    "bco_pair C, no shift": Golden("bco_pair", C, [1.375903], UNSHIFTED),
    # the average of the two
    "bco A": Golden("bco", A, [0.656350], BETA, rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "bco B": Golden("bco", B, [0.642025], BETA),
    "bco C": Golden("bco", C, [0.685675], BETA),
    "bco three": Golden("bco", THREE, [0.656451, 0.710817, 0.653981], BETA),  # mean .673750
    "bco A, beta .01": Golden("bco", A, [1.378808 / 2]),
    # log-ratios 1 and -.5, -.5 alone, -1 alone: m = -.25; softplus(-.125) .632611 and softplus(-.025) .680725 averaged;
    # alone softplus(.025) and softplus(-.075)
    "bco three, answers absent": Golden("bco", THREE, [0.656662, 0.705725, 0.656350], BETA, facts=ABSENT),
    # log-ratios 1 and -.5, -.5 alone, .6 alone: m = .15; softplus(-.085) and softplus(-.065) averaged;
    # alone softplus(.065) and softplus(-.045)
    "bco three, no lone rejected": Golden("bco", THREE, [0.656363, 0.726175, 0.6709], BETA, facts=LONE),
}
EQUIVALENT: dict[str, str] = {}
