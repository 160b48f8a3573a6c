"""Golden numbers of objectives/adaptive.py and the moments it reads, of which these are the first steps; softplus(x) = log(1 + exp(x))."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from loss_world import THREE, A, B, Batch, C, Golden, Values


def twice(batch: Batch) -> Batch:
    """The same example twice: the moments need two."""

    def doubled(values: Values) -> dict[str, Sequence[Any]]:
        return {key: [*column, *column] for key, column in values.items()}

    parts = {name: doubled(getattr(batch, name)) for name in ("sums", "lengths", "tokens", "more", "facts")}
    return replace(batch, **{**parts, "facts": {**parts["facts"], "uniform_draw": [0.5, 0.5]}})


BETA = ("loss.beta=0.1",)


def beta_dpo(batch: Batch, expected: list[float], *, decay: float = 0.9, drop: float = 0.0, **more: Any) -> Golden:
    overrides = (f"loss.gap.decay={decay}", f"loss.gap.drop_fraction={drop}", *more.pop("overrides", ()))
    return Golden("beta_dpo", batch, expected, overrides, **more)


def alpha_dpo(batch: Batch, expected: list[float], decay: float, reference: list[float]) -> Golden:
    """Two examples that differ in the reference's mean log-probability of the chosen answer."""
    return Golden("alpha_dpo", twice(batch), expected, (f"loss.gap.decay={decay}",), tensors={"reference_chosen_mean_logps": reference})


def drawn(*values: float) -> dict[str, list[float]]:
    return {"uniform_draw": list(values)}


# Policy and reference exchanged: all gaps change sign.
EXCHANGED = {
    "policy_chosen_logps": [-11, -7.5, -15.6], "policy_rejected_logps": [-11.5, -9.2, -13],
    "reference_chosen_logps": [-10, -8, -15], "reference_rejected_logps": [-12, -9, -14],
}  # fmt: skip
# The reference is the policy.
MEANS = {"chosen": [-5, -5, -4.6875], "rejected": [-5, -4.5, -5]}  # beta times the mean log-probabilities
FRESH = {"reference_chosen_mean_logps": [-2, -2, -1.875], "reference_rejected_mean_logps": [-2, -1.8, -2]}
GOLDENS = {
    # weights exp(-2 + .9 - 2 + .9) = .110803, exp(-1.94 + .9 - 1.55 + .9) = .184520, exp(-2.24 + 2.9 - 1.671429 + 2.4) = 4.009119,
    # times the losses of dpo, .620957, .593650 and .678260
    "wpo A": Golden("wpo", A, [0.068804], BETA, rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "wpo B": Golden("wpo", B, [0.109540], BETA),
    "wpo C": Golden("wpo", C, [0.678260], BETA),
    "wpo C, unclamped": Golden("wpo", C, [2.719224], (*BETA, "loss.max_weight=inf")),
    "wpo C, at most .5": Golden("wpo", C, [0.339130], (*BETA, "loss.max_weight=0.5")),
    "wpo C, beta .01": Golden("wpo", C, [0.691648]),
    # equal gaps 1.5 and 2.1, whose running mean the decay makes 1: strengths .1 (1 + .6 .5) = .13 and .1 (1 + .6 1.1) = .166
    "beta_dpo A, M0 1": beta_dpo(twice(A), [0.600393] * 2, decay=1 / 3, rewards={"chosen": [0.1] * 2, "rejected": [-0.05] * 2}),
    "beta_dpo B, M0 1": beta_dpo(twice(B), [0.533961] * 2, decay=1 - 1 / 2.1),
    # M0 = .03, strength .1 (1 + .6 .27) = .1162, softplus(-.03486); one of the two is dropped, the tie goes to the first
    "beta_dpo C": beta_dpo(twice(C), [0.675869] * 2),
    "beta_dpo C, one dropped": beta_dpo(twice(C), [2 * 0.675869, 0], drop=0.5),
    # gaps 1.5, -.7, 1.6, mean .8, std 1.3; M0 = .08, strength .1 (1 + .6 .72) = .1432 (mean loss .640387)
    "beta_dpo three, all kept": beta_dpo(THREE, [0.591504, 0.744523, 0.585135]),
    # equal draws keep the gaps nearest to M0 = .08, -.7 and 1.5, mean .4: strength .1192, scale 3/2
    "beta_dpo three, kept 0 1": beta_dpo(THREE, [0.911607, 1.103606, 0], drop=0.3),
    # without memory M0 = .8, and 1.5 and 1.6 are nearest, mean 1.55: strength .145
    "beta_dpo three, kept 0 2": beta_dpo(THREE, [0.885448, 0, 0.875790], decay=0, drop=0.3),
    # log-weights -.144970, -.665680, -.189349 plus -log(-log draw): 2.250367 for .9, 1.113207 for .72, .806795 for .64, .366513 for .5
    # and -1.097189 for .05; strengths .1 (1 + .6 (.4 - .8)) = .076, .01 and .142
    "beta_dpo three, kept 0 1 by draw": beta_dpo(THREE, [0.956656, 1.080151, 0], decay=0, drop=0.3, facts=drawn(0.5, 0.9, 0.5)),
    "beta_dpo three, kept 1": beta_dpo(THREE, [0, 2.08996, 0], decay=0, drop=0.6, facts=drawn(0.5, 0.72, 0.05)),
    "beta_dpo three, kept 0": beta_dpo(THREE, [1.776923, 0, 0], decay=0, drop=0.6, facts=drawn(0.5, 0.64, 0.05)),
    # the strength .1 (1 + 3 (-.8 + .08)) is negative, so .001 is taken
    "beta_dpo three, least strength": beta_dpo(THREE, [0.693897, 0.692797, 0.693948], overrides=("loss.beta_slope=3",), tensors=EXCHANGED),
    # mean gaps 17/60, -.165, .217857; mu = .011206, sd = .024217 (mean loss 4.251818)
    "alpha_dpo three": Golden("alpha_dpo", THREE, [7.119388, 0.177599, 5.458467], rewards=MEANS),
    # mean .112063 and std .242167 of the batch itself
    "alpha_dpo three, no memory": Golden("alpha_dpo", THREE, [1.999164, 1.642900, 1.625178], ("loss.gap.decay=0",)),
    # all gaps 0, sd 1e-6: simpo, softplus(-2.5 (g - .6)) with g = 0, -.2, .125
    "alpha_dpo three, fresh": Golden("alpha_dpo", THREE, [1.701413, 2.126928, 1.453690], tensors=FRESH),
    # the second gap is -(sqrt(2) - 1)^2 times the first, so std is twice the mean, and the decay makes them mu = .1 and sd = .2;
    # first losses softplus(-2.5 (0 - .6 - .2 (.283333 - .1) / .2)) and softplus(-2.5 (-.39 - .6 - .2 (.36 - .1) / .2))
    "alpha_dpo A": alpha_dpo(A, [2.090320, 1.408770], 1 - 0.8520753749552101, [-2.2, -2.2 + 17 / 60 * (1 + (2**0.5 - 1) ** 2)]),
    "alpha_dpo B": alpha_dpo(B, [3.167999, 2.189355], 1 - 0.670614878436971, [-2.2, -2.2 + 0.36 * (1 + (2**0.5 - 1) ** 2)]),
    # gaps that differ by .1 have z = -.707107 and .707107: softplus(-2.5 (-.568571 - .458579)), softplus(-2.5 (-.568571 - .741421))
    "alpha_dpo C": alpha_dpo(C, [2.641774, 3.312102], 0.0, [-2.0, -2.1]),
}
EQUIVALENT = {
    "operands swapped in `gaps - mean`": "the difference is squared",
}
