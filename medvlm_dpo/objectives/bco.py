"""BCO: a binary classifier on the implicit reward, shifted by the mean reward of everything seen so far."""

from torch.nn.functional import logsigmoid

from medvlm_dpo.objectives.ranges import positive, refuse
from medvlm_dpo.objectives.statistics import Scalar
from medvlm_dpo.vocab import ObjectiveOutput, PerExample


def bco(  # noqa: PLR0913 - every tensor is a parameter: the signature is the contract
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    chosen_present: PerExample,
    rejected_present: PerExample,
    mean_logratio: Scalar,
    *,
    beta: float,
) -> ObjectiveOutput:
    """Binary classifier optimisation of single answers: each one is classified by itself, and may be absent.

    With m = `mean_logratio` and the log-ratio policy minus reference of the answer:
    chosen `-log sigmoid(beta * (log-ratio - m))`, rejected `-log sigmoid(-beta * (log-ratio - m))`.
    The answers of one example share its weight: an example with both contributes their average (half of `bco_pair`), an example with one
    that one. An absent answer has no part in value or gradient. Source: https://arxiv.org/abs/2404.04656.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats, 0 where absent; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        chosen_present: [example], 1 where the example has a chosen answer, else 0. Every example has at least one answer.
        rejected_present: the same of the rejected answer.
        mean_logratio: the reward shift delta divided by beta, one number per global batch, nats, no gradient.
        beta: strength of the pull to the reference, > 0, dimensionless.

    Returns:
        One loss per example (ln 2 where policy and reference agree and the shift is 0); rewards `beta * log-ratio` of the chosen and the
        rejected answer.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps)
    delta = beta * mean_logratio
    chosen_part = chosen_present * logsigmoid(chosen_reward - delta)
    rejected_part = rejected_present * logsigmoid(delta - rejected_reward)
    loss = -(chosen_part + rejected_part) / (chosen_present + rejected_present)
    return ObjectiveOutput(loss, {"chosen": chosen_reward, "rejected": rejected_reward})


def bco_pair(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    mean_logratio: Scalar,
    *,
    beta: float,
) -> ObjectiveOutput:
    """Binary classifier optimisation of pairs: `-log sigmoid(beta * (a - m)) - log sigmoid(-beta * (b - m))`.

    a and b are the log-ratios, policy minus reference, of the chosen and the rejected answer, m = `mean_logratio`. Both answers are
    counted whole, so that a pair weighs twice what it weighs in `bco`. With m = 0 it is what TRL 1.16 calls `bco_pair`.
    Source: https://arxiv.org/abs/2404.04656.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        mean_logratio: the reward shift delta divided by beta, one number per global batch, nats, no gradient.
        beta: strength of the pull to the reference, > 0, dimensionless.

    Returns:
        One loss per example (2 ln 2 where policy and reference agree and the shift is 0); rewards `beta * log-ratio` of the chosen and the
        rejected answer.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps)
    delta = beta * mean_logratio
    loss = -logsigmoid(chosen_reward - delta) - logsigmoid(delta - rejected_reward)
    return ObjectiveOutput(loss, {"chosen": chosen_reward, "rejected": rejected_reward})
