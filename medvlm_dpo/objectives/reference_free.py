"""Preference losses on the policy's own log-probabilities: no reference is read."""

import math

from torch import Tensor, exp, expm1, log, log1p, where
from torch.nn.functional import logsigmoid, relu

from medvlm_dpo.objectives.ranges import not_negative, positive, refuse
from medvlm_dpo.vocab import ObjectiveOutput, PerExample

LOG_HALF = math.log(0.5)


def simpo(
    policy_chosen_mean_logps: PerExample,
    policy_rejected_mean_logps: PerExample,
    *,
    beta: float,
    gamma_beta_ratio: float,
) -> ObjectiveOutput:
    """SimPO: `-log sigmoid(beta * (chosen mean log-prob - rejected mean log-prob - gamma_beta_ratio))`.

    The target margin is given as the ratio gamma / beta, as in the official code; where an absolute gamma is expected the same number
    means a margin 1 / beta times as large. Source: https://arxiv.org/abs/2405.14734.

    Args:
        policy_chosen_mean_logps: [example], mean over response tokens, nats.
        policy_rejected_mean_logps: of the rejected answer.
        beta: scale of the reward, > 0, dimensionless.
        gamma_beta_ratio: target margin of the mean log-probabilities, >= 0, nats per token.

    Returns:
        One loss per example; rewards `beta * mean log-probability` of the chosen and the rejected answer.

    Raises:
        InputError: if beta is not positive or gamma_beta_ratio is negative.
    """
    refuse(positive({"beta": beta}) + not_negative({"gamma_beta_ratio": gamma_beta_ratio}))
    chosen_reward = beta * policy_chosen_mean_logps
    rejected_reward = beta * policy_rejected_mean_logps
    loss = -logsigmoid(chosen_reward - rejected_reward - beta * gamma_beta_ratio)
    return ObjectiveOutput(loss, {"chosen": chosen_reward, "rejected": rejected_reward})


def policy_hinge(policy_chosen_logps: PerExample, policy_rejected_logps: PerExample, *, margin: float) -> ObjectiveOutput:
    """Rank calibration of SLiC-HF: `max(0, margin - (chosen log-prob) + (rejected log-prob))`.

    Unlike `hinge` it reads no reference and scales nothing: the margin is in nats between whole answers, so the longer answer has the
    harder task. Source: https://arxiv.org/abs/2305.10425.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats.
        policy_rejected_logps: of the rejected answer.
        margin: by how much the chosen answer must be likelier, >= 0, nats.

    Returns:
        One loss per example, `margin` where both answers are equally likely; rewards are the log-probabilities themselves.

    Raises:
        InputError: if the margin is negative.
    """
    refuse(not_negative({"margin": margin}))
    chosen_reward, rejected_reward = policy_chosen_logps, policy_rejected_logps
    return ObjectiveOutput(relu(margin - chosen_reward + rejected_reward), {"chosen": chosen_reward, "rejected": rejected_reward})


def uniform_dpo(policy_chosen_logps: PerExample, policy_rejected_logps: PerExample, *, beta: float) -> ObjectiveOutput:
    """Preference term of CPO: `-log sigmoid(beta * (chosen log-prob - rejected log-prob))`, DPO with a uniform reference.

    The sums are not divided by length, in contrast to `simpo`: a uniform reference gives every token the same probability, and what remains
    of it, a multiple of the difference in length, is left out as in the published loss. Source: https://arxiv.org/abs/2401.08417.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats.
        policy_rejected_logps: of the rejected answer.
        beta: scale of the reward, > 0, dimensionless.

    Returns:
        One loss per example (ln 2 where both answers are equally likely); rewards `beta * log-probability`.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_reward = beta * policy_chosen_logps
    rejected_reward = beta * policy_rejected_logps
    return ObjectiveOutput(-logsigmoid(chosen_reward - rejected_reward), {"chosen": chosen_reward, "rejected": rejected_reward})


def odds_ratio(policy_chosen_mean_logps: PerExample, policy_rejected_mean_logps: PerExample) -> ObjectiveOutput:
    """Preference term of ORPO: `-log sigmoid(log odds(chosen) - log odds(rejected))`.

    The odds are `p / (1 - p)` with p the geometric mean of an answer's token probabilities. Mean log-probabilities above -1e-7 count as
    -1e-7, because the odds of a certainty are infinite; there the gradient is 0. Source: https://arxiv.org/abs/2403.07691.

    Args:
        policy_chosen_mean_logps: [example], mean over response tokens, nats.
        policy_rejected_mean_logps: of the rejected answer.

    Returns:
        One loss per example (ln 2 where both answers are equally likely); rewards are the mean log-probabilities.
    """
    chosen_reward, rejected_reward = policy_chosen_mean_logps, policy_rejected_mean_logps
    loss = -logsigmoid(_log_odds(chosen_reward) - _log_odds(rejected_reward))
    return ObjectiveOutput(loss, {"chosen": chosen_reward, "rejected": rejected_reward})


def _log_odds(log_probability: Tensor) -> Tensor:
    """`log(p / (1 - p))` of a log-probability, any shape, nats; p is at most exp(-1e-7)."""
    certain = log_probability.clamp(max=-1e-7)
    # log(1 - p) in the form that keeps its digits: log1p for small p, expm1 for p near 1
    complement = where(certain < LOG_HALF, log1p(-exp(certain)), log(-expm1(certain)))
    return certain - complement
