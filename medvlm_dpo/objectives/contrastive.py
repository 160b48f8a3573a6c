"""Losses on the difference of two log-ratios, chosen against rejected, policy against reference."""

from torch.nn.functional import logsigmoid

from medvlm_dpo.objectives.ranges import positive, refuse
from medvlm_dpo.vocab import ObjectiveOutput, PerExample


def dpo(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    *,
    beta: float,
) -> ObjectiveOutput:
    """Direct preference optimisation: `-log sigmoid(beta * ((chosen log-ratio) - (rejected log-ratio)))`.

    A log-ratio is policy minus reference. Source: https://arxiv.org/abs/2305.18290.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        beta: strength of the pull to the reference, > 0, dimensionless.

    Returns:
        One loss per example (ln 2 where the margin is 0); rewards `beta * log-ratio` of the chosen and the rejected answer.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps)
    return ObjectiveOutput(-logsigmoid(chosen_reward - rejected_reward), {"chosen": chosen_reward, "rejected": rejected_reward})


def ipo(
    policy_chosen_mean_logps: PerExample,
    policy_rejected_mean_logps: PerExample,
    reference_chosen_mean_logps: PerExample,
    reference_rejected_mean_logps: PerExample,
    *,
    beta: float,
) -> ObjectiveOutput:
    """Identity preference optimisation: `((chosen log-ratio) - (rejected log-ratio) - 1 / (2 * beta)) ** 2`.

    The log-ratios are means over response tokens. The paper's text does not say so; the mean form was confirmed by its authors, as TRL's
    DPO trainer states. With sums the loss has other values (12.25 where this one gives 22.25) and depends on length.
    Source: https://arxiv.org/abs/2310.12036, where beta is called tau.

    Args:
        policy_chosen_mean_logps: [example], mean over response tokens, nats; likewise the other three.
        policy_rejected_mean_logps: of the rejected answer.
        reference_chosen_mean_logps: of the chosen answer under the reference.
        reference_rejected_mean_logps: of the rejected answer under the reference.
        beta: strength of the pull to the reference (tau), > 0, dimensionless. The loss draws the margin to 1 / (2 * beta).

    Returns:
        One loss per example (1 / (4 * beta ** 2) where the margin is 0); rewards `beta * mean log-ratio`, whose margin is drawn to 1/2.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_ratio = policy_chosen_mean_logps - reference_chosen_mean_logps
    rejected_ratio = policy_rejected_mean_logps - reference_rejected_mean_logps
    loss = (chosen_ratio - rejected_ratio - 1 / (2 * beta)) ** 2
    return ObjectiveOutput(loss, {"chosen": beta * chosen_ratio, "rejected": beta * rejected_ratio})
