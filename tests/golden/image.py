"""Golden numbers of objectives/image.py and of the sums on corrupted images; softplus(x) = log(1 + exp(x)).

Log-ratios a, b, c (chosen answer, corrupted image) and d (rejected answer, corrupted image): set A 1, -.5, -.5, -.5; B 1.3, -.8, -.9, -.9;
C -1.2, -1.5, -1.3, -.8. Only B and C tell the image from the answers.
"""

from typing import Any

from loss_world import THREE, A, B, C, Golden

MEAN_WEIGHT = "loss.weight_scale={_target_:medvlm_dpo.objectives.statistics.mean_pair_weight,_partial_:true}"
# The three pairs with rejected answers on corrupted images, d = -.4, .3, 0, and weights whose mean is .5.
WEIGHTED: dict[str, Any] = {
    "tensors": {"policy_rejected_corrupt_logps": [-12.4, -9.7, -14.0], "reference_rejected_corrupt_logps": [-12.0, -10.0, -14.0]},
    "facts": {"pair_weight": [0.6, 0.0, 0.9]},
}
# The three pairs with their chosen answers on corrupted images, c = .2, -.1, -.3.
CROPPED = {"policy_chosen_corrupt_logps": [-12.0, -9.0, -17.0], "reference_chosen_corrupt_logps": [-12.2, -8.9, -16.7]}

GOLDENS = {
    # softplus(-.1 (a - c)): margins 1.5, 2.2, .1 and .8, -.4, .9
    "copo A": Golden("copo", A, [0.620957], rewards={"chosen": [0.1], "chosen_corrupt": [-0.05]}),
    "copo B": Golden("copo", B, [0.589185], rewards={"chosen": [0.13], "chosen_corrupt": [-0.09]}),
    "copo C": Golden("copo", C, [0.688160], rewards={"chosen": [-0.12], "chosen_corrupt": [-0.13]}),
    "copo three": Golden("copo", THREE, [0.653947, 0.713347, 0.649159], tensors=CROPPED),
    # softplus(margin - .1 a)
    "anchor A": Golden("anchor", A, [0.644397], rewards={"chosen": [0.1]}),
    "anchor B": Golden("anchor", B, [0.630258], rewards={"chosen": [0.13]}),
    "anchor C": Golden("anchor", C, [0.754946], rewards={"chosen": [-0.12]}),
    "anchor C, margin .2": Golden("anchor", C, [0.865893], ("loss.margin=0.2",), rewards={"chosen": [-0.12]}),
    "anchor three": Golden("anchor", THREE, [0.644397, 0.718460, 0.663597]),
    # the pair's weight times softplus(-.1 (a - d)): .6 times .620957, .589185, .713347
    "mmedpo A": Golden("mmedpo", A, [0.372574], rewards={"chosen": [0.1], "rejected_corrupt": [-0.05]}),
    "mmedpo B": Golden("mmedpo", B, [0.353511], rewards={"chosen": [0.13], "rejected_corrupt": [-0.09]}),
    "mmedpo C": Golden("mmedpo", C, [0.428008], rewards={"chosen": [-0.12], "rejected_corrupt": [-0.08]}),
    "mmedpo C, scale .5": Golden("mmedpo", C, [0.856017], ("loss.weight_scale=0.5",)),
    # margins 1.4, -.8, .6 give .625595, .733947, .663597; times .6, 0, .9, and divided by .5
    "mmedpo three": Golden("mmedpo", THREE, [0.375357, 0.0, 0.597237], **WEIGHTED),
    # weights of 0 only: 0 divided by the smallest scale, not 0/0
    "mmedpo B, mean weight of nothing": Golden("mmedpo", B, [0.0], (MEAN_WEIGHT,), facts={"pair_weight": [0.0]}),
    "mmedpo three, mean weight": Golden("mmedpo", THREE, [0.750714, 0.0, 1.194474], (MEAN_WEIGHT,), **WEIGHTED),
    "mmedpo_released A": Golden("mmedpo_released", A, [0.372574]),
    "mmedpo_released B": Golden("mmedpo_released", B, [0.353511]),
    "mmedpo_released C": Golden("mmedpo_released", C, [0.428008]),
    # guided minus reference, guidance 2: A -20 + 13 + 11 = 4 and -24 + 13 + 11.5 = .5; B -19.4 + 13.2 + 11 = 4.8 and
    # -24.8 + 13.2 + 11.6 = 0; C -22.4 + 13.4 + 10 = 1 and -23.4 + 14.1 + 10.2 = .9; guidance 1.5 on C: -.1 and -.3
    "v_dpo A": Golden("v_dpo", A, [0.533382], rewards={"chosen": [0.4], "rejected": [0.05]}),
    "v_dpo B": Golden("v_dpo", B, [0.481675], rewards={"chosen": [0.48], "rejected": [0.0]}),
    "v_dpo C": Golden("v_dpo", C, [0.688160], rewards={"chosen": [0.1], "rejected": [0.09]}),
    "v_dpo C, guidance 1.5": Golden("v_dpo", C, [0.683197], ("loss.guidance=1.5",), rewards={"chosen": [-0.01], "rejected": [-0.03]}),
    "v_dpo C, guidance 1": Golden("v_dpo", C, [0.678260], ("loss.guidance=1.0",)),  # dpo
    # dpo + copo + anchor; on B .593650 + .589185 + .630258
    "mdpo A": Golden("mdpo", A, [1.886311]),
    "mdpo B": Golden("mdpo", B, [1.813093], rewards={"chosen": [0.13], "rejected": [-0.08], "chosen_corrupt": [-0.09]}),
    "mdpo C": Golden("mdpo", C, [2.121365]),
    "mdpo three": Golden("mdpo", THREE, [1.919301, 2.160566, 1.929100], tensors=CROPPED),
    # 2 dpo + anchor; on C 2 * .678260 + .754946
    "mdpo_released A": Golden("mdpo_released", A, [1.886311]),
    "mdpo_released B": Golden("mdpo_released", B, [1.817557], rewards={"chosen": [0.13], "rejected": [-0.08]}),
    "mdpo_released C": Golden("mdpo_released", C, [2.111465]),
    "mdpo_released three": Golden("mdpo_released", THREE, [1.886311, 2.175979, 1.896285]),
    # dpo + .2 copo + anchor; on A 1.2 * .620957 + .644397, on B .593650 + .2 * .589185 + .630258
    "opa_dpo A": Golden("opa_dpo", A, [1.389545]),
    "opa_dpo B": Golden("opa_dpo", B, [1.341745]),
    "opa_dpo C": Golden("opa_dpo", C, [1.570838], rewards={"chosen": [-0.12], "rejected": [-0.15], "chosen_corrupt": [-0.13]}),
    "opa_dpo three": Golden("opa_dpo", THREE, [1.396143, 1.589889, 1.409773], tensors=CROPPED),
    # dpo + copo; on C .678260 + .688160
    "re_align_rdpo A": Golden("re_align_rdpo", A, [1.241914]),
    "re_align_rdpo B": Golden("re_align_rdpo", B, [1.182835], rewards={"chosen": [0.13], "rejected": [-0.08], "chosen_corrupt": [-0.09]}),
    "re_align_rdpo C": Golden("re_align_rdpo", C, [1.366419]),
    "re_align_rdpo three": Golden("re_align_rdpo", THREE, [1.274904, 1.442107, 1.265503], tensors=CROPPED),
}
EQUIVALENT: dict[str, str] = {}
