"""Golden numbers of objectives/transport.py and the sorting it reads; softplus(x) = log(1 + exp(x))."""

from loss_world import THREE, A, B, C, Golden

BETA = ("loss.beta=0.1",)
GOLDENS = {
    # a batch of one: dpo
    "aot A": Golden("aot", A, [0.620957], BETA, rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "aot B": Golden("aot", B, [0.593650], BETA),
    "aot C": Golden("aot", C, [0.678260], BETA),
    # u = 2, 1, -1 and v = .5, 1.7, -2.6, sorted -2.6, .5, 1.7: u - v = .3, .5, 1.6 (mean .654354)
    "aot three": Golden("aot", THREE, [0.678260, 0.668460, 0.616344], BETA),
    "aot three, beta .01": Golden("aot", THREE, [0.691648, 0.690650, 0.685179]),
    "aot_unpaired A": Golden("aot_unpaired", A, [0.620957], BETA, rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "aot_unpaired B": Golden("aot_unpaired", B, [0.593650], BETA),
    "aot_unpaired C": Golden("aot_unpaired", C, [0.678260], BETA),
    # a = 1, -.5, .6 and b = -.5, .2, -1: by rank (-.5, -1), (.6, -.5), (1, .2), distances .5, 1.1, .8. Each answer's own:
    # chosen .8, .5, 1.1, rejected 1.1, .8, .5; a loss is the average of its two softplus(-.1 distance) (mean .654022)
    "aot_unpaired three": Golden("aot_unpaired", THREE, [0.646803, 0.661203, 0.654059], BETA),
    "aot_unpaired three, beta .01": Golden("aot_unpaired", THREE, [0.688409, 0.689903, 0.689156]),
}
EQUIVALENT = {
    "aot, line 30: policy_chosen_logps detached": "only a reward, whose gradient nobody asks for",
    "aot, line 31: policy_rejected_logps detached": "the same",
}
