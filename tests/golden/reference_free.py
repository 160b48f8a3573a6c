"""Golden numbers of objectives/reference_free.py: softplus(-(beta (mean margin - ratio)))."""

from loss_world import THREE, A, B, C, Golden

ABSOLUTE = ("loss.beta=0.1", "loss.gamma_beta_ratio=5.0")  # an absolute gamma of .5
GOLDENS = {
    # A 2(0 - .5) = -1; B 2(-.39 - .5)= -1.78 with -1.94 + 1.55 = -.39; C -2.24 + 1.671429 = -.568571, 2(-1.068571); three 0, -.2, .125
    "simpo A": Golden("simpo", A, [1.313262], rewards={"chosen": [-4.0], "rejected": [-4.0]}),
    "simpo B": Golden("simpo", B, [1.935839], rewards={"chosen": [-3.88], "rejected": [-3.1]}),
    "simpo C": Golden("simpo", C, [2.248677]),
    "simpo A, beta .1": Golden("simpo", A, [0.974077], ABSOLUTE),
    "simpo B, beta .1": Golden("simpo", B, [0.998531], ABSOLUTE),
    "simpo three": Golden("simpo", THREE, [1.313262, 1.620417, 1.136871]),
}
EQUIVALENT: dict[str, str] = {}
