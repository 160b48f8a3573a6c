"""Golden numbers of objectives/reference_free.py and of the sums around its functions; sp(x) = log(1 + exp(x))."""

from loss_world import THREE, A, B, C, Golden

ABSOLUTE = ("loss.beta=0.1", "loss.gamma_beta_ratio=5.0")  # an absolute gamma of .5
MARGIN = ("loss.margin=5",)
ONLY_ODDS = ("loss.weights.sft=0",)
GOLDENS = {
    # sp(-beta (mean margin - ratio)):
    # A 2(0 - .5) = -1; B 2(-.39 - .5)= -1.78 with -1.94 + 1.55 = -.39; C -2.24 + 1.671429 = -.568571, 2(-1.068571); three 0, -.2, .125
    "simpo A": Golden("simpo", A, [1.313262], rewards={"chosen": [-4.0], "rejected": [-4.0]}),
    "simpo B": Golden("simpo", B, [1.935839], rewards={"chosen": [-3.88], "rejected": [-3.1]}),
    "simpo C": Golden("simpo", C, [2.248677]),
    "simpo A, beta .1": Golden("simpo", A, [0.974077], ABSOLUTE),
    "simpo B, beta .1": Golden("simpo", B, [0.998531], ABSOLUTE),
    "simpo three": Golden("simpo", THREE, [1.313262, 1.620417, 1.136871]),
    # max(0, margin - S_w + S_l) + .1 x -S_w: A 0 + 1, 3 + 1; B 0 + .97, 2.3 + .97; C .5 + 1.12; three 3 + 1, 4 + .8, 6 + 1.5
    "slic A": Golden("slic", A, [1.0], rewards={"chosen": [-10.0], "rejected": [-12.0]}),
    "slic B": Golden("slic", B, [0.97], rewards={"chosen": [-9.7], "rejected": [-12.4]}),
    "slic C": Golden("slic", C, [1.62], rewards={"chosen": [-11.2], "rejected": [-11.7]}),
    "slic A, margin 5": Golden("slic", A, [4.0], MARGIN),
    "slic B, margin 5": Golden("slic", B, [3.27], MARGIN),
    "slic three, margin 5": Golden("slic", THREE, [4.0, 4.8, 7.5], MARGIN),
    # sp(-.1 (S_w - S_l)) + S_w over the mean length: sp(-.2) + 2, sp(-.27) + 1.94, sp(-.05) + 2.24;
    # three sp(-.2) + 30/17, sp(-.1) + 24/17, sp(.1) + 45/17
    "cpo A": Golden("cpo", A, [2.598139], rewards={"chosen": [-1.0], "rejected": [-1.2]}),
    "cpo B": Golden("cpo", B, [2.507232], rewards={"chosen": [-0.97], "rejected": [-1.24]}),
    "cpo C": Golden("cpo", C, [2.908460]),
    "cpo three": Golden("cpo", THREE, [2.362845, 2.056161, 3.391455]),
    # simpo with 10 (mean margin - .54) and .05 times the mean: sp(5.4) + .1, sp(9.3) + .097, sp(11.085714) + .112;
    # three sp(5.4) + 1.5/17, sp(7.4) + 1.2/17, sp(4.15) + 2.25/17
    "cpo_simpo A": Golden("cpo_simpo", A, [5.504506], rewards={"chosen": [-20.0], "rejected": [-20.0]}),
    "cpo_simpo B": Golden("cpo_simpo", B, [9.397091], rewards={"chosen": [-19.4], "rejected": [-15.5]}),
    "cpo_simpo C": Golden("cpo_simpo", C, [11.197730]),
    "cpo_simpo three": Golden("cpo_simpo", THREE, [5.492742, 7.471199, 4.297994]),
    # .1 log(1 + q), q = (exp(-mean S_w) - 1) / (exp(-mean S_l) - 1), because the odds of x are 1 / (exp(-x) - 1); plus -mean S_w:
    # A equal means, .1 ln 2; B q = (exp(1.94) - 1) / (exp(1.55) - 1) = 1.605498; C (exp(2.24) - 1) / (exp(1.671429) - 1) = 1.944594
    "orpo A": Golden("orpo", A, [2.069315], rewards={"chosen": [-2.0], "rejected": [-2.0]}),
    "orpo B": Golden("orpo", B, [2.035762], rewards={"chosen": [-1.94], "rejected": [-1.55]}),
    "orpo C": Golden("orpo", C, [2.347943]),
    "orpo A, odds ratio alone": Golden("orpo", A, [0.069315], ONLY_ODDS),
    "orpo B, odds ratio alone": Golden("orpo", B, [0.095762], ONLY_ODDS),
    # equal means; exp(2) - 1 over exp(1.8) - 1; exp(1.875) - 1 over exp(2) - 1
    "orpo three": Golden("orpo", THREE, [2.069315, 2.081768, 1.937278]),
    # likely answers, p above one half: q = (exp(.3) - 1) / (exp(.5) - 1) = .539306, log(1 + q) = .431331; .3 + .1 x that
    "orpo likely": Golden("orpo", A, [0.343133], tensors={"policy_chosen_mean_logps": [-0.3], "policy_rejected_mean_logps": [-0.5]}),
    # certain answers, here rounded to above 0, count as exp(-1e-7): q = (exp(3) - 1) / 1e-7, log(1 + q) = 19.067026, and 1/q
    "orpo certain": Golden("orpo", A, [3 + 1.9067026], tensors={"policy_chosen_mean_logps": [-3.0], "policy_rejected_mean_logps": [0.001]}),
    "orpo certain, the other way": Golden(
        "orpo", A, [-0.001], tensors={"policy_chosen_mean_logps": [0.001], "policy_rejected_mean_logps": [-3.0]}
    ),
}
EQUIVALENT: dict[str, str] = {}
