"""Losses that weight the changed tokens: those of an answer that the other answer does not have."""

from torch.nn.functional import logsigmoid

from medvlm_dpo.objectives.ranges import not_negative, positive, refuse
from medvlm_dpo.vocab import ObjectiveOutput, PerExample, PerToken


def token_weights(changed_mask: PerToken, segment_weight: float) -> PerToken:
    """`segment_weight` on changed tokens and 1 on all others; on padding the values they weigh are 0.

    Args:
        changed_mask: [example, token], 1 on changed tokens, else 0.
        segment_weight: dimensionless.
    """
    return 1 + (segment_weight - 1) * changed_mask


def ddpo(  # noqa: PLR0913 - every tensor is a parameter: the signature is the contract
    policy_chosen_token_logps: PerToken,
    policy_rejected_token_logps: PerToken,
    reference_chosen_token_logps: PerToken,
    reference_rejected_token_logps: PerToken,
    chosen_changed_mask: PerToken,
    rejected_changed_mask: PerToken,
    chosen_lengths: PerExample,
    rejected_lengths: PerExample,
    *,
    beta: float,
    segment_weight: float,
) -> ObjectiveOutput:
    """Dense DPO (RLHF-V): `-log sigmoid(beta * (A - B))` on weighted means over the tokens of log-ratios.

    A is the mean of the chosen answer's log-ratios per token with weight `segment_weight` on changed tokens and 1 on the others, divided by
    the sum of these weights; B the same of the rejected answer. `ddpo_sum` does not divide. Source: https://arxiv.org/abs/2312.00849.

    Args:
        policy_chosen_token_logps: [example, token], one log-probability per response token, nats, 0 on padding; likewise the other three.
        policy_rejected_token_logps: of the rejected answer.
        reference_chosen_token_logps: of the chosen answer under the reference.
        reference_rejected_token_logps: of the rejected answer under the reference.
        chosen_changed_mask: [example, token], 1 on tokens of the chosen answer that the rejected one does not have, 0 on padding.
        rejected_changed_mask: the same of the rejected answer.
        chosen_lengths: [example], response tokens of the chosen answer.
        rejected_lengths: of the rejected answer.
        beta: strength of the pull to the reference, > 0, dimensionless.
        segment_weight: weight of changed tokens, > 0, dimensionless (gamma); at 1 this is `dpo_norm`.

    Returns:
        One loss per example (ln 2 where policy and reference agree); rewards `beta * weighted mean log-ratio` of either answer.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta, "segment_weight": segment_weight}))
    chosen_weights = token_weights(chosen_changed_mask, segment_weight)
    rejected_weights = token_weights(rejected_changed_mask, segment_weight)
    # the weights of the response tokens alone: on padding the masks are 0, so it counts in neither summand
    chosen_total = chosen_lengths + (segment_weight - 1) * chosen_changed_mask.sum(dim=1)
    rejected_total = rejected_lengths + (segment_weight - 1) * rejected_changed_mask.sum(dim=1)
    chosen_sum = (chosen_weights * (policy_chosen_token_logps - reference_chosen_token_logps)).sum(dim=1)
    rejected_sum = (rejected_weights * (policy_rejected_token_logps - reference_rejected_token_logps)).sum(dim=1)
    chosen_reward = beta * chosen_sum / chosen_total
    rejected_reward = beta * rejected_sum / rejected_total
    return ObjectiveOutput(-logsigmoid(chosen_reward - rejected_reward), {"chosen": chosen_reward, "rejected": rejected_reward})


def ddpo_sum(  # noqa: PLR0913 - every tensor is a parameter: the signature is the contract
    policy_chosen_token_logps: PerToken,
    policy_rejected_token_logps: PerToken,
    reference_chosen_token_logps: PerToken,
    reference_rejected_token_logps: PerToken,
    chosen_changed_mask: PerToken,
    rejected_changed_mask: PerToken,
    *,
    beta: float,
    segment_weight: float,
) -> ObjectiveOutput:
    """Dense DPO as released: `-log sigmoid(beta * (A - B))` on weighted sums over the tokens of log-ratios.

    As `ddpo` without the division by the sum of the weights, so that beta acts about `segment_weight` times as strong where much has
    changed. Source: https://arxiv.org/abs/2312.00849.

    Args:
        policy_chosen_token_logps: [example, token], one log-probability per response token, nats, 0 on padding; likewise the other three.
        policy_rejected_token_logps: of the rejected answer.
        reference_chosen_token_logps: of the chosen answer under the reference.
        reference_rejected_token_logps: of the rejected answer under the reference.
        chosen_changed_mask: [example, token], 1 on tokens of the chosen answer that the rejected one does not have, 0 on padding.
        rejected_changed_mask: the same of the rejected answer.
        beta: strength of the pull to the reference, > 0, dimensionless.
        segment_weight: weight of changed tokens, > 0, dimensionless (gamma); at 1 this is `dpo`.

    Returns:
        One loss per example (ln 2 where policy and reference agree); rewards `beta * weighted log-ratio` of either answer.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta, "segment_weight": segment_weight}))
    chosen_weights = token_weights(chosen_changed_mask, segment_weight)
    rejected_weights = token_weights(rejected_changed_mask, segment_weight)
    chosen_reward = beta * (chosen_weights * (policy_chosen_token_logps - reference_chosen_token_logps)).sum(dim=1)
    rejected_reward = beta * (rejected_weights * (policy_rejected_token_logps - reference_rejected_token_logps)).sum(dim=1)
    return ObjectiveOutput(-logsigmoid(chosen_reward - rejected_reward), {"chosen": chosen_reward, "rejected": rejected_reward})


def chip_released(  # noqa: PLR0913 - every tensor is a parameter: the signature is the contract
    policy_chosen_token_logps: PerToken,
    policy_rejected_token_logps: PerToken,
    policy_chosen_corrupt_token_logps: PerToken,
    reference_chosen_token_logps: PerToken,
    reference_rejected_token_logps: PerToken,
    reference_chosen_corrupt_token_logps: PerToken,
    detached_policy_chosen_forward_kl: PerExample,
    policy_rejected_forward_kl: PerExample,
    chosen_changed_mask: PerToken,
    rejected_changed_mask: PerToken,
    *,
    beta: float,
    segment_weight: float,
    token_weight: float,
) -> ObjectiveOutput:
    """CHiP as released: `-log sigmoid(beta * (A - B + A - C - token_weight * (rejected KL - chosen KL)))`, one sigmoid for all levels.

    A, B and C are sums over the tokens of log-ratios, of the chosen answer, the rejected answer, and the chosen answer on the corrupted
    image, with weight `segment_weight` on changed tokens and 1 on the others. The loss `chip` is a sum of four losses instead.
    Source: https://arxiv.org/abs/2501.16629 and its released trainer, without that trainer's bugs.

    Args:
        policy_chosen_token_logps: [example, token], one log-probability per response token, nats, 0 on padding; likewise the other five.
        policy_rejected_token_logps: of the rejected answer.
        policy_chosen_corrupt_token_logps: of the chosen answer on the corrupted image.
        reference_chosen_token_logps: of the chosen answer under the reference.
        reference_rejected_token_logps: of the rejected answer under the reference.
        reference_chosen_corrupt_token_logps: of the chosen answer on the corrupted image under the reference.
        detached_policy_chosen_forward_kl: [example], KL(reference to policy) summed over the chosen answer's tokens, nats, no gradient.
        policy_rejected_forward_kl: of the rejected answer, with gradient.
        chosen_changed_mask: [example, token], 1 on tokens of the chosen answer that the rejected one does not have, 0 on padding.
        rejected_changed_mask: the same of the rejected answer.
        beta: strength of the pull to the reference, > 0, dimensionless.
        segment_weight: weight of changed tokens, > 0, dimensionless.
        token_weight: weight of the difference of divergences, >= 0, dimensionless.

    Returns:
        One loss per example (ln 2 where policy and reference agree); rewards `beta * (weighted log-ratio + KL)` of either answer, without
        `token_weight` as released.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta, "segment_weight": segment_weight}) + not_negative({"token_weight": token_weight}))
    chosen_weights = token_weights(chosen_changed_mask, segment_weight)
    rejected_weights = token_weights(rejected_changed_mask, segment_weight)
    chosen_ratio = (chosen_weights * (policy_chosen_token_logps - reference_chosen_token_logps)).sum(dim=1)
    rejected_ratio = (rejected_weights * (policy_rejected_token_logps - reference_rejected_token_logps)).sum(dim=1)
    corrupt_ratio = (chosen_weights * (policy_chosen_corrupt_token_logps - reference_chosen_corrupt_token_logps)).sum(dim=1)
    text_margin, image_margin = chosen_ratio - rejected_ratio, chosen_ratio - corrupt_ratio
    chosen_kl, rejected_kl = detached_policy_chosen_forward_kl, policy_rejected_forward_kl
    loss = -logsigmoid(beta * (text_margin + image_margin - token_weight * (rejected_kl - chosen_kl)))
    return ObjectiveOutput(loss, {"chosen": beta * (chosen_ratio + chosen_kl), "rejected": beta * (rejected_ratio + rejected_kl)})
