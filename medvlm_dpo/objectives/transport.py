"""AOT: the distribution of preferences of the whole batch is compared, by sorting, instead of pair by pair."""

from torch.nn.functional import logsigmoid

from medvlm_dpo.objectives.ranges import positive, refuse
from medvlm_dpo.objectives.sorting import Partners
from medvlm_dpo.vocab import ObjectiveOutput, PerExample


def aot(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    sorted_reference_gap: PerExample,
    *,
    beta: float,
) -> ObjectiveOutput:
    """Alignment via optimal transport: `-log sigmoid(beta * ((chosen - rejected log-prob) - reference gap of equal rank))`.

    Both gaps are sorted over the global batch, so the reference's gap may come from another pair. With one pair it is DPO.
    Source: https://arxiv.org/abs/2406.05882.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference; for the rewards only.
        reference_rejected_logps: of the rejected answer under the reference; for the rewards only.
        sorted_reference_gap: [example], the reference's chosen minus rejected log-probability of equal rank, nats, no gradient.
        beta: strength of the pull to the reference, > 0, dimensionless.

    Returns:
        One loss per example (ln 2 where policy and reference agree); rewards `beta * log-ratio` of the chosen and the rejected answer.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps)
    loss = -logsigmoid(beta * (policy_chosen_logps - policy_rejected_logps - sorted_reference_gap))
    return ObjectiveOutput(loss, {"chosen": chosen_reward, "rejected": rejected_reward})


def aot_unpaired(  # noqa: PLR0913 - every tensor is a parameter: the signature is the contract
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    detached_policy_chosen_logps: PerExample,
    detached_policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    sorted_partners: Partners,
    *,
    beta: float,
) -> ObjectiveOutput:
    """Alignment via optimal transport, log-ratios sorted apart: `-log sigmoid(beta * (chosen - rejected log-ratio of equal rank))`.

    An example holds a chosen and a rejected answer whose partners belong to other examples. Each coupled pair is counted from both ends,
    with the other end constant, less one half of the two values without gradient: over the global batch, value and gradient are those
    of the sorted loss. Source: https://arxiv.org/abs/2406.05882.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other five.
        policy_rejected_logps: of the rejected answer.
        detached_policy_chosen_logps: as `policy_chosen_logps`, no gradient.
        detached_policy_rejected_logps: as `policy_rejected_logps`, no gradient.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        sorted_partners: [example] each, log-ratios of equal rank among the answers of the other kind, nats, no gradient.
        beta: strength of the pull to the reference, > 0, dimensionless.

    Returns:
        One loss per example, the average of its two coupled pairs (ln 2 where policy and reference agree); rewards `beta * log-ratio` of
        the chosen and the rejected answer.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps)
    chosen_partner, rejected_partner = beta * sorted_partners.of_chosen, beta * sorted_partners.of_rejected
    detached_chosen = beta * (detached_policy_chosen_logps - reference_chosen_logps)
    detached_rejected = beta * (detached_policy_rejected_logps - reference_rejected_logps)
    live = -logsigmoid(chosen_reward - chosen_partner) - logsigmoid(rejected_partner - rejected_reward)
    fixed = -logsigmoid(detached_chosen - chosen_partner) - logsigmoid(rejected_partner - detached_rejected)
    return ObjectiveOutput(live - fixed / 2, {"chosen": chosen_reward, "rejected": rejected_reward})
