"""Golden numbers of objectives/length.py; sp(x) = log(1 + exp(x))."""

from loss_world import THREE, A, B, Batch, C, Golden

# Two pairs: the chosen answer is the longer one in the first, the rejected answer in the second.
# Log-ratios of tokens: chosen .5 0 1 -.4, rejected -1 .5; chosen .7, rejected 0 -1 .4. Sums: policy -7 and -3, -1 and -4;
# reference -8.1 and -2.5, -1.7 and -3.4.
MIXED = Batch(
    sums={},
    lengths={"chosen": [4, 1], "rejected": [2, 3]},
    tokens={
        "policy_chosen.logps": [[-1, -2, -1, -3], [-1]],
        "reference_chosen.logps": [[-1.5, -2, -2, -2.6], [-1.7]],
        "policy_rejected.logps": [[-2, -1], [-1, -2, -1]],
        "reference_rejected.logps": [[-1, -1.5], [-1, -1, -1.4]],
    },
)
WHOLE, CUT = ("loss.tail_weight=1",), ("loss.tail_weight=0",)
GOLDENS = {
    # sp(-(.1 h + .01 (n_w - n_l))): .15 - .01, .21 - .03, .03 - .02; three .15 - .01, -.07 - .01, .16 + .01; C at penalty .1: .03 - .2.
    # Rewards hold the lengths 5 6, 5 8, 5 7 too: .1 + .05 and -.05 + .06, .13 + .05 and -.08 + .08, -.12 + .05 and -.15 + .07
    "r_dpo A": Golden("r_dpo", A, [0.625595], rewards={"chosen": [0.15], "rejected": [0.01]}),
    "r_dpo B": Golden("r_dpo", B, [0.607192], rewards={"chosen": [0.18], "rejected": [0.0]}),
    "r_dpo C": Golden("r_dpo", C, [0.688160], rewards={"chosen": [-0.07], "rejected": [-0.08]}),
    "r_dpo C, penalty .1": Golden("r_dpo", C, [0.781755], ("loss.length_penalty=0.1",)),
    "r_dpo three": Golden("r_dpo", THREE, [0.625595, 0.733947, 0.611755]),
    # A: the sixth rejected token, log-ratio .3, counts half: b = -.8 + .15 = -.65, margin 1.65. B: the last three rejected, -.2 -.2 .1,
    # count half: b = -.5 - .15 = -.65, margin 1.95. C: the last two, -.5 -.3, count half: b = -.7 - .4 = -1.1, margin -.1
    "ld_dpo A": Golden("ld_dpo", A, [0.614046], rewards={"chosen": [0.1], "rejected": [-0.065]}),
    "ld_dpo B": Golden("ld_dpo", B, [0.600393], rewards={"chosen": [0.13], "rejected": [-0.065]}),
    "ld_dpo C": Golden("ld_dpo", C, [0.698160], rewards={"chosen": [-0.12], "rejected": [-0.11]}),
    # tail halved: a = .5 + .3, b = -.5; a = .7, b = 0 - .3. Cut: .5 + .5, .7 - 0. Whole, as dpo: 1.1 + .5, .7 + .6; C 1.5 - 1.2
    "ld_dpo mixed": Golden("ld_dpo", MIXED, [0.630258, 0.644397], rewards={"chosen": [0.08, 0.07], "rejected": [-0.05, -0.03]}),
    "ld_dpo mixed, tail cut": Golden("ld_dpo", MIXED, [0.644397, 0.658760], CUT),
    "ld_dpo mixed, tail whole": Golden("ld_dpo", MIXED, [0.616344, 0.630258], WHOLE),
    "ld_dpo C, tail whole": Golden("ld_dpo", C, [0.678260], WHOLE),
    # the policy's sums alone: A S_l = -10 - 1 = -11 against -11.5, margin 1 - .5 = .5; B -8.7 - 1.85 = -10.55 against -11.6,
    # 1.3 - 1.05 = .25; C -8.2 - 1.75 = -9.95 against -10.2, -1.2 - .25 = -1.45.
    # Mixed: -3 - 2 = -5 against -8.1, 3.1 + .5; .7 and -1 - 1.5 + 3.4, .7 - .9
    "ld_dpo_policy_only A": Golden("ld_dpo_policy_only", A, [0.668460], rewards={"chosen": [0.1], "rejected": [0.05]}),
    "ld_dpo_policy_only B": Golden("ld_dpo_policy_only", B, [0.680725], rewards={"chosen": [0.13], "rejected": [0.105]}),
    "ld_dpo_policy_only C": Golden("ld_dpo_policy_only", C, [0.768273], rewards={"chosen": [-0.12], "rejected": [0.025]}),
    "ld_dpo_policy_only mixed": Golden(
        "ld_dpo_policy_only", MIXED, [0.529260, 0.703197], rewards={"chosen": [0.31, 0.07], "rejected": [-0.05, 0.09]}
    ),
    "ld_dpo_policy_only C, tail whole": Golden("ld_dpo_policy_only", C, [0.678260], WHOLE),
    # weights 1, .98, .9604 ...: A a = .2 + .098 + .38416 + .282358 + 0 = .964518, b = .2 - .392 + .19208 - .564715 - .184474 + .271176
    # = -.477933, margin 1.442450; B margin 1.967437 likewise; with the first exponent 1 both margins are .98 times these
    "d2po A": Golden("d2po", A, [0.623623], rewards={"chosen": [0.0964518], "rejected": [-0.0477933]}),
    "d2po B": Golden("d2po", B, [0.599606]),
    "d2po A, as released": Golden("d2po", A, [0.624963], ("loss.first_exponent=1",)),
    "d2po B, as released": Golden("d2po", B, [0.601382], ("loss.first_exponent=1",)),
    # decay .5: C a = -.2 - .1 - .025 - .025 - .03125 = -.38125, b = .2 - .1 - .05 - .075 + .00625 - .015625 - .0046875 = -.0390625;
    # mixed .5 + 0 + .25 - .05 = .7 and -1 + .25 = -.75; .7 and 0 - .5 + .1 = -.4
    "d2po C, decay .5": Golden("d2po", C, [0.710403], ("loss.decay=0.5",), {"chosen": [-0.038125], "rejected": [-0.00390625]}),
    "d2po mixed, decay .5": Golden("d2po", MIXED, [0.623273, 0.639659], ("loss.decay=0.5",)),
    "d2po C, no decay": Golden("d2po", C, [0.678260], ("loss.decay=1",)),
}
EQUIVALENT: dict[str, str] = {}
