"""Losses whose weight, strength or margin follows the policy or the batch: WPO, beta-DPO and alpha-DPO."""

from torch import exp
from torch.nn.functional import logsigmoid

from medvlm_dpo.objectives.moments import FilteredGaps, GapMoments
from medvlm_dpo.objectives.ranges import not_negative, positive, positive_or_unlimited, refuse
from medvlm_dpo.vocab import ObjectiveOutput, PerExample

_LEAST_BETA = 0.001  # of the authors' code


def wpo(  # noqa: PLR0913 - every tensor is a parameter: the signature is the contract
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    detached_policy_chosen_mean_logps: PerExample,
    detached_policy_rejected_mean_logps: PerExample,
    detached_policy_chosen_mean_collision_logps: PerExample,
    detached_policy_rejected_mean_collision_logps: PerExample,
    *,
    beta: float,
    max_weight: float,
) -> ObjectiveOutput:
    """Weighted preference optimisation: the DPO loss of a pair times how likely its answers are under the policy itself.

    `min(max_weight, exp(A_w + A_l)) * -log sigmoid(beta * ((chosen log-ratio) - (rejected log-ratio)))`, where A is an answer's mean over
    tokens of the log-probability less the log of the summed squared probabilities. The weight carries no gradient.
    Source: https://arxiv.org/abs/2406.11827.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the next three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        detached_policy_chosen_mean_logps: [example], mean over response tokens, nats, no gradient; likewise the other three.
        detached_policy_rejected_mean_logps: of the rejected answer.
        detached_policy_chosen_mean_collision_logps: mean log of the summed squared probabilities, chosen answer.
        detached_policy_rejected_mean_collision_logps: of the rejected answer.
        beta: strength of the pull to the reference, > 0, dimensionless.
        max_weight: upper bound of the weight, > 0, dimensionless; infinity for none.

    Returns:
        One loss per example (the weight times ln 2 where the margin is 0); rewards `beta * log-ratio` of the chosen and the rejected
        answer.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta}) + positive_or_unlimited({"max_weight": max_weight}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps)
    chosen_score = detached_policy_chosen_mean_logps - detached_policy_chosen_mean_collision_logps
    rejected_score = detached_policy_rejected_mean_logps - detached_policy_rejected_mean_collision_logps
    weight = exp(chosen_score + rejected_score).clamp(max=max_weight)
    loss = -weight * logsigmoid(chosen_reward - rejected_reward)
    return ObjectiveOutput(loss, {"chosen": chosen_reward, "rejected": rejected_reward})


def beta_dpo(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    gap: FilteredGaps,
    *,
    beta: float,
    beta_slope: float,
) -> ObjectiveOutput:
    """Beta-DPO: DPO over the kept pairs of a batch, with a strength that grows with their mean gap.

    With h = (chosen log-ratio) - (rejected log-ratio): `keep_scale * -log sigmoid(b * h)`,
    `b = max(0.001, beta * (1 + beta_slope * (mean gap of the kept pairs - running mean gap)))`.
    The scale is 0 for a dropped pair and batch / kept for a kept one, so the mean over the batch is the mean over the kept pairs.
    Source: https://arxiv.org/abs/2407.08639.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        gap: running mean of the gaps, mean of the kept ones, and scale per example; no gradient.
        beta: strength where the kept pairs' mean gap is the running one, > 0, dimensionless.
        beta_slope: relative change of the strength per nat of difference, >= 0 (alpha in the paper), 1 / nats.

    Returns:
        One loss per example (`keep_scale` times ln 2 where the margin is 0); rewards `beta * log-ratio`, with the beta of the settings.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta}) + not_negative({"beta_slope": beta_slope}))
    chosen_ratio = policy_chosen_logps - reference_chosen_logps
    rejected_ratio = policy_rejected_logps - reference_rejected_logps
    batch_beta = (beta * (1 + beta_slope * (gap.kept_mean - gap.mean))).clamp(min=_LEAST_BETA)
    loss = -gap.keep_scale * logsigmoid(batch_beta * (chosen_ratio - rejected_ratio))
    return ObjectiveOutput(loss, {"chosen": beta * chosen_ratio, "rejected": beta * rejected_ratio})


def alpha_dpo(  # noqa: PLR0913 - every tensor is a parameter: the signature is the contract
    policy_chosen_mean_logps: PerExample,
    policy_rejected_mean_logps: PerExample,
    detached_policy_chosen_mean_logps: PerExample,
    detached_policy_rejected_mean_logps: PerExample,
    reference_chosen_mean_logps: PerExample,
    reference_rejected_mean_logps: PerExample,
    gap: GapMoments,
    *,
    beta: float,
    gamma_beta_ratio: float,
    margin_scale: float,
) -> ObjectiveOutput:
    """Alpha-DPO: SimPO whose target margin grows with the pair's own gap over the reference.

    `-log sigmoid(beta * (chosen - rejected mean log-prob - (gamma_beta_ratio + margin_scale * z)))`, where z is the standardised
    `(chosen mean log-ratio) - (rejected mean log-ratio)`. The target carries no gradient. Source: https://arxiv.org/abs/2410.10148,
    official code; there as here the margin_scale (alpha) is multiplied by beta.

    Args:
        policy_chosen_mean_logps: [example], mean over response tokens, nats; likewise the other five.
        policy_rejected_mean_logps: of the rejected answer.
        detached_policy_chosen_mean_logps: as `policy_chosen_mean_logps`, no gradient.
        detached_policy_rejected_mean_logps: as `policy_rejected_mean_logps`, no gradient.
        reference_chosen_mean_logps: of the chosen answer under the reference.
        reference_rejected_mean_logps: of the rejected answer under the reference.
        gap: running mean and standard deviation of the gaps, no gradient.
        beta: scale of the reward, > 0, dimensionless.
        gamma_beta_ratio: target margin at z = 0, >= 0, nats per token.
        margin_scale: change of the target margin per standard deviation, >= 0 (alpha), nats per token.

    Returns:
        One loss per example; rewards `beta * mean log-probability` of the chosen and the rejected answer.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta}) + not_negative({"gamma_beta_ratio": gamma_beta_ratio, "margin_scale": margin_scale}))
    chosen_reward = beta * policy_chosen_mean_logps
    rejected_reward = beta * policy_rejected_mean_logps
    chosen_ratio = detached_policy_chosen_mean_logps - reference_chosen_mean_logps
    rejected_ratio = detached_policy_rejected_mean_logps - reference_rejected_mean_logps
    standardised = (chosen_ratio - rejected_ratio - gap.mean) / gap.std
    target = beta * (gamma_beta_ratio + margin_scale * standardised)
    loss = -logsigmoid(chosen_reward - rejected_reward - target)
    return ObjectiveOutput(loss, {"chosen": chosen_reward, "rejected": rejected_reward})
