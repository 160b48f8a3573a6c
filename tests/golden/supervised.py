"""Golden numbers of objectives/supervised.py and of the sums of DPO with a supervised term; sp(x) = log(1 + exp(x))."""

from loss_world import THREE, A, B, C, Golden

DPO_REWARDS = {"chosen": [0.1], "rejected": [-0.05]}  # .1 a and .1 b of set A
NO_SHIFT = ("loss.terms.bco_pair.mean_logratio=0.0",)
GOLDENS = {
    # -S/n: 10/5, 9.7/5, 11.2/5; over the three pairs 2, 2, 15/8 (mean 1.958333)
    "sft A": Golden("sft", A, [2.0]),
    "sft B": Golden("sft", B, [1.94]),
    "sft C": Golden("sft", C, [2.24]),
    "sft three": Golden("sft", THREE, [2.0, 2.0, 1.875]),
    "sft_sum A": Golden("sft_sum", A, [10.0]),
    "sft_sum B": Golden("sft_sum", B, [9.7]),
    "sft_sum three": Golden("sft_sum", THREE, [10.0, 8.0, 15.0]),
    # the mean length is 17/3: 30/17, 24/17, 45/17 (mean 33/17 = 1.941176, all 33 nats over all 17 tokens)
    "sft_token_mean A": Golden("sft_token_mean", A, [2.0]),
    "sft_token_mean three": Golden("sft_token_mean", THREE, [30 / 17, 24 / 17, 45 / 17]),
    "sft_token_mean three, fixed length": Golden("sft_token_mean", THREE, [2.5, 2.0, 3.75], ("loss.mean_chosen_length=4.0",)),
    # dpo + 1 x sft: sp(-.15) + 2, sp(-.21) + 1.94, sp(-.03) + 2.24; sp(-.15) + 2, sp(.07) + 2, sp(-.16) + 1.875
    "dpo_nll A": Golden("dpo_nll", A, [2.620957], rewards=DPO_REWARDS),
    "dpo_nll B": Golden("dpo_nll", B, [2.533650]),
    "dpo_nll C": Golden("dpo_nll", C, [2.918260]),
    "dpo_nll three": Golden("dpo_nll", THREE, [2.620957, 2.728760, 2.491344]),
    # dpo + .005 x sft, at beta .1: .620957 + .01, .593650 + .0097; at its own beta .01: sp(-.015) + .01, sp(-.021) + .0097,
    # C sp(-.003) + .0112; three sp(-.015) + .01, sp(.007) + .01, sp(-.016) + .009375
    "rpo A, beta .1": Golden("rpo", A, [0.630957], ("loss.beta=0.1",), rewards=DPO_REWARDS),
    "rpo B, beta .1": Golden("rpo", B, [0.603350], ("loss.beta=0.1",)),
    "rpo A": Golden("rpo", A, [0.695675], rewards={"chosen": [0.01], "rejected": [-0.005]}),
    "rpo B": Golden("rpo", B, [0.692402]),
    "rpo C": Golden("rpo", C, [0.702848]),
    "rpo three": Golden("rpo", THREE, [0.695675, 0.706653, 0.694554]),
    # .8 sp(-.1 h) + .2 (sp(-.1 (a - m)) + sp(.1 (b - m))) + S/n; the first step's m is the mean log-ratio (a + b) / 2:
    # A .25 (a - m = .75), B .25 (1.05), C -1.35 (.15); over the three pairs -.2 / 6
    "mpo A, no shift": Golden("mpo", A, [2.759337], NO_SHIFT, rewards=DPO_REWARDS),
    "mpo B, no shift": Golden("mpo", B, [2.671761], NO_SHIFT),
    "mpo A": Golden("mpo", A, [2.759306], rewards=DPO_REWARDS),
    "mpo B": Golden("mpo", B, [2.671730]),
    "mpo C": Golden("mpo", C, [3.056878]),
    "mpo three": Golden("mpo", THREE, [2.524052, 2.279099, 3.401726]),
}
EQUIVALENT: dict[str, str] = {}
