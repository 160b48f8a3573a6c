"""Golden numbers of objectives/divergence.py; softplus(x) = log(1 + exp(x)), s(x) = 1 / (1 + exp(-x)), h = a - b."""

from loss_world import THREE, A, B, C, Golden

BETA = ("loss.beta=0.1",)
LN2 = 0.6931472
GOLDENS = {
    # softplus(-.1 (LS(a) - LS(b))): A LS(1) = -.313262, LS(-.5) = -.974077, a margin of .660815; rewards .1 (ln 2 + LS)
    "f_dpo_js A": Golden("f_dpo_js", A, [0.660652], rewards={"chosen": [0.0379885], "rejected": [-0.0280930]}),
    "f_dpo_js B": Golden("f_dpo_js", B, [0.647724]),
    "f_dpo_js C": Golden("f_dpo_js", C, [0.681312]),
    "f_dpo_js three": Golden("f_dpo_js", THREE, [0.660652, 0.712121, 0.650317]),
    # softplus(-.1 (exp(-b) - exp(-a))): A exp(.5) - exp(-1) = 1.280842; rewards .1 (1 - exp(-a)) = .0632121 and .1 (1 - exp(.5))
    "f_dpo_forward_kl A": Golden("f_dpo_forward_kl", A, [0.631154], rewards={"chosen": [0.0632121], "rejected": [-0.0648721]}),
    "f_dpo_forward_kl B": Golden("f_dpo_forward_kl", B, [0.600257]),
    "f_dpo_forward_kl C": Golden("f_dpo_forward_kl", C, [0.636754]),
    "f_dpo_forward_kl three": Golden("f_dpo_forward_kl", THREE, [0.631154, 0.735508, 0.590545]),
    # the rejected exponent .5 counts as .3: softplus(-.1 (exp(.3) - exp(-1))); below, 1.2 and 1.5 both count as 1: a margin of 0
    "f_dpo_forward_kl A, clamped": Golden(
        "f_dpo_forward_kl", A, [0.645253], ("loss.max_exponent=0.3",), rewards={"chosen": [0.0632121], "rejected": [-0.0349859]}
    ),
    "f_dpo_forward_kl C, clamped": Golden(
        "f_dpo_forward_kl", C, [LN2], ("loss.max_exponent=1",), rewards={"chosen": [-0.1718282], "rejected": [-0.1718282]}
    ),
    # softplus(-.2 (exp(-b / 2) - exp(-a / 2))): A exp(.25) - exp(-.5) = .677495; rewards .2 (1 - exp(-a / 2))
    "f_dpo_alpha A": Golden("f_dpo_alpha", A, [0.627691], rewards={"chosen": [0.0786939], "rejected": [-0.0568051]}),
    "f_dpo_alpha B": Golden("f_dpo_alpha", B, [0.600864]),
    "f_dpo_alpha C": Golden("f_dpo_alpha", C, [0.664094]),
    # likewise softplus(-.4 (exp(-b / 4) - exp(-a / 4))): A .4 (exp(.125) - exp(-.25)) = .141739
    "f_dpo_alpha three, order .25": Golden("f_dpo_alpha", THREE, [0.624787, 0.730193, 0.612063], ("loss.order=0.25",)),
    # the exponents .6 and .75 both count as .5: a margin of 0, rewards .2 (1 - exp(.5))
    "f_dpo_alpha C, clamped": Golden(
        "f_dpo_alpha", C, [LN2], ("loss.max_exponent=0.5",), rewards={"chosen": [-0.1297443], "rejected": [-0.1297443]}
    ),
    # q (log q - log .999) + (1 - q) (log(1 - q) - log .001) with q = s(.1 h) = .537430 for A
    "exo A": Golden("exo", A, [2.505517], rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "exo B": Golden("exo", B, [2.405435]),
    "exo C": Golden("exo", C, [2.709546]),
    # KL from (q, 1 - q) to (.8, .2)
    "exo three, flip rate .2": Golden("exo", THREE, [0.174059, 0.248006, 0.171000], ("loss.flip_rate=0.2",)),
    # q log q + (1 - q) (log(1 - q) + 10): at beta .1 and at the default .5
    "exo_released A, beta .1": Golden("exo_released", A, [3.935359], BETA, rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "exo_released B, beta .1": Golden("exo_released", B, [3.789256], BETA),
    "exo_released C": Golden("exo_released", C, [3.935359], rewards={"chosen": [-0.6], "rejected": [-0.75]}),
    "exo_released three": Golden("exo_released", THREE, [2.580726, 5.188110, 2.481134]),
    # (1 - m) softplus(-x) + m exp(-x), m = s(x / .05): A x = .15, m = .952574; then the default beta .05
    "discopop A, beta .1": Golden("discopop", A, [0.849338], BETA, rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "discopop B, beta .1": Golden("discopop", B, [0.807379], BETA),
    "discopop C": Golden("discopop", C, [0.857684], rewards={"chosen": [-0.06], "rejected": [-0.075]}),
    "discopop three": Golden("discopop", THREE, [0.878234, 0.818579, 0.877901]),
    # x = h and m = s(h); the middle pair's exponent .7 counts as .5: .668188 softplus(.7) + .331812 exp(.5)
    "discopop three, clamped": Golden(
        "discopop", THREE, [0.219168, 1.284201, 0.198874], ("loss.beta=1", "loss.temperature=1", "loss.max_exponent=0.5")
    ),
}
EQUIVALENT: dict[str, str] = {}
