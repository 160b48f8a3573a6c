"""Perception terms: the chosen answer's distribution should change when the image is corrupted, up to a limit per token."""

from torch import exp

from medvlm_dpo.objectives.ranges import positive, refuse
from medvlm_dpo.vocab import ObjectiveOutput, PerExample, PerToken

MAX_LOG_RATIO = 20.0  # nats; the published code's limit, so that the exponential stays finite


def perception(policy_chosen_token_image_kl: PerToken, chosen_lengths: PerExample, *, max_kl: float) -> ObjectiveOutput:
    """Perception term, exact: `-(mean over response tokens of min(KL(true image, corrupted image), max_kl))`.

    The loss is negative and falls as the divergence grows; without the limit it has no lower bound. The corrupted side carries no gradient.
    After PAPO, https://arxiv.org/abs/2507.06448, which estimates the divergence on sampled tokens (`perception_k3`).

    Args:
        policy_chosen_token_image_kl: [example, token], nats, 0 on padding: divergence from the distribution on the true image to the one on
            the corrupted image.
        chosen_lengths: [example], response tokens.
        max_kl: limit per token, > 0, nats; above it a token carries no gradient.

    Returns:
        One loss per example, in nats per token, between -max_kl and 0; no rewards.

    Raises:
        InputError: if max_kl is not positive.
    """
    refuse(positive({"max_kl": max_kl}))
    return ObjectiveOutput(-policy_chosen_token_image_kl.clamp(max=max_kl).sum(dim=1) / chosen_lengths, {})


def perception_k3(
    policy_chosen_token_logps: PerToken,
    detached_policy_chosen_corrupt_token_logps: PerToken,
    chosen_lengths: PerExample,
    *,
    max_kl: float,
) -> ObjectiveOutput:
    """Perception term on labels: `-(mean over response tokens of min(exp(u) - u - 1, max_kl))`.

    u is the label's log-probability on the corrupted image minus that on the true one. Over tokens drawn from the policy the average of
    `exp(u) - u - 1` is the divergence of `perception`; over given answers it is not. Source: https://arxiv.org/abs/2507.06448.

    Args:
        policy_chosen_token_logps: [example, token], nats, 0 on padding.
        detached_policy_chosen_corrupt_token_logps: of the same tokens on the corrupted image, without gradient, 0 on padding.
        chosen_lengths: [example], response tokens.
        max_kl: limit per token, > 0, nats; above it a token carries no gradient.

    Returns:
        One loss per example, in nats per token, between -max_kl and 0 (0 where both images give the same values); no rewards.

    Raises:
        InputError: if max_kl is not positive.
    """
    refuse(positive({"max_kl": max_kl}))
    log_ratio = (detached_policy_chosen_corrupt_token_logps - policy_chosen_token_logps).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    estimate = (exp(log_ratio) - log_ratio - 1).clamp(max=max_kl)
    return ObjectiveOutput(-estimate.sum(dim=1) / chosen_lengths, {})
