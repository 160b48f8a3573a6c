"""Losses that correct direct preference optimisation for the length of answers."""

from torch import Tensor, arange, where
from torch.nn.functional import logsigmoid

from medvlm_dpo.objectives.ranges import at_most, not_negative, positive, refuse
from medvlm_dpo.vocab import ObjectiveOutput, PerExample, PerToken


def r_dpo(  # noqa: PLR0913 - every tensor is a parameter: the signature is the contract
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    chosen_lengths: PerExample,
    rejected_lengths: PerExample,
    *,
    beta: float,
    length_penalty: float,
) -> ObjectiveOutput:
    """Length-regularised DPO: `-log sigmoid(beta * ((chosen log-ratio) - (rejected log-ratio)) + length_penalty * (difference in length))`.

    The difference is chosen minus rejected and stands outside beta. The sign follows from maximising reward minus penalty times length: a
    longer chosen answer has its margin already, so its gradient shrinks. Source: https://arxiv.org/abs/2403.19159.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        chosen_lengths: [example], response tokens of the chosen answer, end-of-sequence included.
        rejected_lengths: of the rejected answer.
        beta: strength of the pull to the reference, > 0, dimensionless.
        length_penalty: margin granted per token of difference, >= 0, per token.

    Returns:
        One loss per example (ln 2 where both log-ratios and both lengths are equal); rewards `beta * log-ratio + length_penalty * length`,
        which the loss compares. They are not 0 where policy and reference agree.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta}) + not_negative({"length_penalty": length_penalty}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps) + length_penalty * chosen_lengths
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps) + length_penalty * rejected_lengths
    return ObjectiveOutput(-logsigmoid(chosen_reward - rejected_reward), {"chosen": chosen_reward, "rejected": rejected_reward})


def ld_dpo(  # noqa: PLR0913 - every tensor is a parameter: the signature is the contract
    policy_chosen_token_logps: PerToken,
    policy_rejected_token_logps: PerToken,
    reference_chosen_token_logps: PerToken,
    reference_rejected_token_logps: PerToken,
    chosen_lengths: PerExample,
    rejected_lengths: PerExample,
    *,
    beta: float,
    tail_weight: float,
) -> ObjectiveOutput:
    """Length-desensitised DPO: tokens beyond the length of the shorter answer count `tail_weight` in all four sums, then DPO.

    With p the shorter length: `-log sigmoid(beta * (sum w_t chosen log-ratio_t - sum w_t rejected log-ratio_t))`, w_t = 1 up to token p and
    `tail_weight` after it. 1 gives DPO, 0 truncates the longer answer. Policy and reference are weighted alike, in contrast to
    `ld_dpo_policy_only`. Source: https://arxiv.org/abs/2409.06411.

    Args:
        policy_chosen_token_logps: [example, token], per response token, nats, 0 on padding; likewise the other three.
        policy_rejected_token_logps: of the rejected answer.
        reference_chosen_token_logps: of the chosen answer under the reference.
        reference_rejected_token_logps: of the rejected answer under the reference.
        chosen_lengths: [example], response tokens of the chosen answer, end-of-sequence included.
        rejected_lengths: of the rejected answer.
        beta: strength of the pull to the reference, > 0, dimensionless.
        tail_weight: weight of the tokens that the shorter answer does not have, within [0, 1], dimensionless.

    Returns:
        One loss per example (ln 2 where policy and reference agree); rewards `beta * weighted log-ratio`.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta}) + not_negative({"tail_weight": tail_weight}) + at_most({"tail_weight": tail_weight}, 1.0))
    shared = chosen_lengths.minimum(rejected_lengths)
    chosen_reward = beta * _sum_with_tail(policy_chosen_token_logps - reference_chosen_token_logps, shared, tail_weight)
    rejected_reward = beta * _sum_with_tail(policy_rejected_token_logps - reference_rejected_token_logps, shared, tail_weight)
    return ObjectiveOutput(-logsigmoid(chosen_reward - rejected_reward), {"chosen": chosen_reward, "rejected": rejected_reward})


def ld_dpo_policy_only(  # noqa: PLR0913 - every tensor is a parameter: the signature is the contract
    policy_chosen_token_logps: PerToken,
    policy_rejected_token_logps: PerToken,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    chosen_lengths: PerExample,
    rejected_lengths: PerExample,
    *,
    beta: float,
    tail_weight: float,
) -> ObjectiveOutput:
    """`ld_dpo` as some trainers have it: the tail is weighted in the policy's sums only, the reference's are plain.

    The margin is therefore not 0 where policy and reference agree: the tail of the longer answer counts `tail_weight - 1` times its
    log-probability. For runs whose numbers depend on it. Source: TRL up to 0.24, https://arxiv.org/abs/2409.06411.

    Args:
        policy_chosen_token_logps: [example, token], per response token, nats, 0 on padding.
        policy_rejected_token_logps: of the rejected answer.
        reference_chosen_logps: [example], summed over all response tokens, nats.
        reference_rejected_logps: of the rejected answer.
        chosen_lengths: [example], response tokens of the chosen answer, end-of-sequence included.
        rejected_lengths: of the rejected answer.
        beta: strength of the pull to the reference, > 0, dimensionless.
        tail_weight: weight of the policy's tokens that the shorter answer does not have, within [0, 1], dimensionless.

    Returns:
        One loss per example; rewards `beta * (weighted policy sum - reference sum)`.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta}) + not_negative({"tail_weight": tail_weight}) + at_most({"tail_weight": tail_weight}, 1.0))
    shared = chosen_lengths.minimum(rejected_lengths)
    chosen_reward = beta * (_sum_with_tail(policy_chosen_token_logps, shared, tail_weight) - reference_chosen_logps)
    rejected_reward = beta * (_sum_with_tail(policy_rejected_token_logps, shared, tail_weight) - reference_rejected_logps)
    return ObjectiveOutput(-logsigmoid(chosen_reward - rejected_reward), {"chosen": chosen_reward, "rejected": rejected_reward})


def d2po(
    policy_chosen_token_logps: PerToken,
    policy_rejected_token_logps: PerToken,
    reference_chosen_token_logps: PerToken,
    reference_rejected_token_logps: PerToken,
    *,
    beta: float,
    decay: float,
    first_exponent: float,
) -> ObjectiveOutput:
    """DPO with temporal decay: token t, counted from 0, weighs `decay ** (t + first_exponent)` in all four sums, then DPO.

    Early tokens matter more, and the length of an answer counts ever less. Decay 1 gives DPO. `first_exponent` 0 gives the first token
    weight 1; the released code gives it `decay`, which is 1 here and the same as a smaller beta. Another method of the name (guided by a
    discriminator) is a labelling scheme, not this loss. Source: https://arxiv.org/abs/2502.14340.

    Args:
        policy_chosen_token_logps: [example, token], per response token, nats, 0 on padding; likewise the other three.
        policy_rejected_token_logps: of the rejected answer.
        reference_chosen_token_logps: of the chosen answer under the reference.
        reference_rejected_token_logps: of the rejected answer under the reference.
        beta: strength of the pull to the reference, > 0, dimensionless.
        decay: weight of a token relative to the one before it, within (0, 1], dimensionless.
        first_exponent: power of the decay that weighs the first token, >= 0, dimensionless.

    Returns:
        One loss per example (ln 2 where policy and reference agree); rewards `beta * weighted log-ratio`.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta, "decay": decay}) + at_most({"decay": decay}, 1.0) + not_negative({"first_exponent": first_exponent}))
    chosen_reward = beta * _decayed_sum(policy_chosen_token_logps - reference_chosen_token_logps, decay, first_exponent)
    rejected_reward = beta * _decayed_sum(policy_rejected_token_logps - reference_rejected_token_logps, decay, first_exponent)
    return ObjectiveOutput(-logsigmoid(chosen_reward - rejected_reward), {"chosen": chosen_reward, "rejected": rejected_reward})


def _sum_with_tail(token_values: PerToken, shared_lengths: PerExample, tail_weight: float) -> PerExample:
    """[example], the sum over tokens; those after the first `shared_lengths` ones count `tail_weight` times."""
    shared = _positions(token_values) < shared_lengths.unsqueeze(1)
    return where(shared, token_values, tail_weight * token_values).sum(dim=1)


def _decayed_sum(token_values: PerToken, decay: float, first_exponent: float) -> PerExample:
    """[example], the sum over tokens weighed by `decay ** (t + first_exponent)`, t from 0."""
    return (decay ** (_positions(token_values) + first_exponent) * token_values).sum(dim=1)


def _positions(token_values: PerToken) -> Tensor:
    """[token], places from 0; answers are padded on the right, with 0, so a place is the token's place in its answer."""
    return arange(token_values.shape[1], dtype=token_values.dtype, device=token_values.device)
