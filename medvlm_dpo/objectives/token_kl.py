"""Losses that read the divergence from the reference along the answer: the sum over its tokens of KL(reference to policy)."""

from torch.nn.functional import logsigmoid

from medvlm_dpo.objectives.ranges import not_negative, positive, refuse
from medvlm_dpo.vocab import ObjectiveOutput, PerExample


def tdpo1(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    policy_chosen_forward_kl: PerExample,
    policy_rejected_forward_kl: PerExample,
    *,
    beta: float,
) -> ObjectiveOutput:
    """Token-level DPO, first form: `-log sigmoid(beta * (h - (rejected KL - chosen KL)))`, h the difference of the log-ratios.

    The divergences are exact sums over the vocabulary, from the reference to the policy, and both carry gradient; in `tdpo2` the chosen
    one does not. Source: https://arxiv.org/abs/2404.11999.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        policy_chosen_forward_kl: [example], KL(reference to policy) summed over the tokens of the chosen answer, nats.
        policy_rejected_forward_kl: of the rejected answer.
        beta: strength of the pull to the reference, > 0, dimensionless.

    Returns:
        One loss per example (ln 2 where policy and reference agree); rewards `beta * (log-ratio + KL)` of either answer.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps + policy_chosen_forward_kl)
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps + policy_rejected_forward_kl)
    return ObjectiveOutput(-logsigmoid(chosen_reward - rejected_reward), {"chosen": chosen_reward, "rejected": rejected_reward})


def tdpo2(  # noqa: PLR0913 - every tensor is a parameter: the signature is the contract
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    detached_policy_chosen_forward_kl: PerExample,
    policy_rejected_forward_kl: PerExample,
    *,
    beta: float,
    kl_weight: float,
) -> ObjectiveOutput:
    """Token-level DPO, second form: `-log sigmoid(beta * (h - kl_weight * (rejected KL - chosen KL)))`, h the difference of the log-ratios.

    The chosen divergence carries no gradient, so the policy may leave the reference on the chosen answer but is held to it on the rejected
    one. Source: https://arxiv.org/abs/2404.11999.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        detached_policy_chosen_forward_kl: [example], KL(reference to policy) summed over the chosen answer's tokens, nats, no gradient.
        policy_rejected_forward_kl: of the rejected answer, with gradient.
        beta: strength of the pull to the reference, > 0, dimensionless.
        kl_weight: weight of the difference of divergences, >= 0, dimensionless (alpha); 0 is DPO.

    Returns:
        One loss per example (ln 2 where policy and reference agree); rewards `beta * (log-ratio + KL)` of either answer, without
        `kl_weight` as in the authors' code.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta}) + not_negative({"kl_weight": kl_weight}))
    chosen_ratio = policy_chosen_logps - reference_chosen_logps
    rejected_ratio = policy_rejected_logps - reference_rejected_logps
    chosen_kl, rejected_kl = detached_policy_chosen_forward_kl, policy_rejected_forward_kl
    loss = -logsigmoid(beta * (chosen_ratio - rejected_ratio - kl_weight * (rejected_kl - chosen_kl)))
    return ObjectiveOutput(loss, {"chosen": beta * (chosen_ratio + chosen_kl), "rejected": beta * (rejected_ratio + rejected_kl)})


def kl_margin(detached_policy_chosen_forward_kl: PerExample, policy_rejected_forward_kl: PerExample, *, beta: float) -> ObjectiveOutput:
    """The token term of CHiP's sum: `beta * (rejected KL - chosen KL)`, the chosen one without gradient.

    Minimising it holds the policy to the reference on the rejected answer, as the same difference does inside the sigmoid of `tdpo2` and
    of `chip_released`. With the other sign it would have no lower bound. Source: https://arxiv.org/abs/2501.16629.

    Args:
        detached_policy_chosen_forward_kl: [example], KL(reference to policy) summed over the chosen answer's tokens, nats, no gradient.
        policy_rejected_forward_kl: of the rejected answer, with gradient.
        beta: strength of the pull to the reference, > 0, dimensionless.

    Returns:
        One loss per example (0 where policy and reference agree); no rewards, since a divergence is no score of an answer.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    return ObjectiveOutput(beta * (policy_rejected_forward_kl - detached_policy_chosen_forward_kl), {})
