"""SimPO: a preference loss on mean log-probabilities, without a reference."""

from torch.nn.functional import logsigmoid

from medvlm_dpo.objectives.ranges import not_negative, positive, refuse
from medvlm_dpo.vocab import ObjectiveOutput, PerExample


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
