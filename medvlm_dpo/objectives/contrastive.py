"""Losses on the difference of two log-ratios, chosen against rejected, policy against reference."""

from torch import relu
from torch.nn.functional import logsigmoid

from medvlm_dpo.objectives.ranges import at_most, below, not_negative, positive, refuse
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


def dpo_norm(
    policy_chosen_mean_logps: PerExample,
    policy_rejected_mean_logps: PerExample,
    reference_chosen_mean_logps: PerExample,
    reference_rejected_mean_logps: PerExample,
    *,
    beta: float,
) -> ObjectiveOutput:
    """DPO on means over response tokens: `-log sigmoid(beta * ((chosen mean log-ratio) - (rejected mean log-ratio)))`.

    Each answer's log-ratio is divided by its own length, so beta must be larger than that of `dpo` by about the length of an answer.
    Source: https://arxiv.org/abs/2411.15124 (Tulu 3).

    Args:
        policy_chosen_mean_logps: [example], mean over response tokens, nats; likewise the other three.
        policy_rejected_mean_logps: of the rejected answer.
        reference_chosen_mean_logps: of the chosen answer under the reference.
        reference_rejected_mean_logps: of the rejected answer under the reference.
        beta: strength of the pull to the reference, > 0, dimensionless, per token.

    Returns:
        One loss per example (ln 2 where the margin is 0); rewards `beta * mean log-ratio`.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_reward = beta * (policy_chosen_mean_logps - reference_chosen_mean_logps)
    rejected_reward = beta * (policy_rejected_mean_logps - reference_rejected_mean_logps)
    return ObjectiveOutput(-logsigmoid(chosen_reward - rejected_reward), {"chosen": chosen_reward, "rejected": rejected_reward})


def cdpo(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    *,
    beta: float,
    flip_rate: float,
) -> ObjectiveOutput:
    """Conservative DPO: `-(1 - flip_rate) * log sigmoid(beta * margin) - flip_rate * log sigmoid(-beta * margin)`.

    The margin is the difference of the two log-ratios. Labels are smoothed, so the best margin is finite,
    `log((1 - flip_rate) / flip_rate) / beta`; `robust_dpo` weighs the same two terms so that flipped labels cancel in expectation.
    Source: https://arxiv.org/abs/2305.18290 (its authors' code, as label smoothing).

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        beta: strength of the pull to the reference, > 0, dimensionless.
        flip_rate: assumed share of pairs whose labels are exchanged, >= 0 and <= 0.5; at 0 this is `dpo`.

    Returns:
        One loss per example (ln 2 where the margin is 0); rewards `beta * log-ratio`.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta}) + not_negative({"flip_rate": flip_rate}) + at_most({"flip_rate": flip_rate}, 0.5))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps)
    margin = chosen_reward - rejected_reward
    loss = -(1 - flip_rate) * logsigmoid(margin) - flip_rate * logsigmoid(-margin)
    return ObjectiveOutput(loss, {"chosen": chosen_reward, "rejected": rejected_reward})


def robust_dpo(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    *,
    beta: float,
    flip_rate: float,
) -> ObjectiveOutput:
    """Robust DPO: `(flip_rate * log sigmoid(-x) - (1 - flip_rate) * log sigmoid(x)) / (1 - 2 * flip_rate)`, x the scaled margin.

    Where labels are exchanged at that rate, its expectation is the `dpo` loss of the true labels; it can be negative. `cdpo` adds the two
    terms instead. Not Re-Align's rDPO and not R-DPO, which concerns length. Source: https://arxiv.org/abs/2403.00409.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        beta: strength of the pull to the reference, > 0, dimensionless.
        flip_rate: share of pairs whose labels are exchanged, >= 0 and < 0.5; at 0 this is `dpo`.

    Returns:
        One loss per example (ln 2 where the margin is 0); rewards `beta * log-ratio`.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta}) + not_negative({"flip_rate": flip_rate}) + below({"flip_rate": flip_rate}, 0.5))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps)
    margin = chosen_reward - rejected_reward
    loss = (flip_rate * logsigmoid(-margin) - (1 - flip_rate) * logsigmoid(margin)) / (1 - 2 * flip_rate)
    return ObjectiveOutput(loss, {"chosen": chosen_reward, "rejected": rejected_reward})


def hinge(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    *,
    beta: float,
) -> ObjectiveOutput:
    """Normalised hinge of RSO: `max(0, 1 - beta * ((chosen log-ratio) - (rejected log-ratio)))`.

    SLiC-HF (`slic`) has a hinge too, but on the policy alone. Source: https://arxiv.org/abs/2309.06657, where beta is called gamma.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        beta: inverse of the margin that is enough, in nats, > 0 (gamma).

    Returns:
        One loss per example (1 where the margin is 0, 0 from a margin of 1 / beta on); rewards `beta * log-ratio`.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps)
    return ObjectiveOutput(relu(1 - (chosen_reward - rejected_reward)), {"chosen": chosen_reward, "rejected": rejected_reward})


def ipo_sum(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    *,
    beta: float,
) -> ObjectiveOutput:
    """IPO on sums over response tokens: `((chosen log-ratio) - (rejected log-ratio) - 1 / (2 * beta)) ** 2`.

    The form of the original DPO repository. `ipo` reads means; with sums the same beta is another loss, since the margin grows with length.
    Source: https://arxiv.org/abs/2310.12036, where beta is called tau.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        beta: strength of the pull to the reference (tau), > 0, dimensionless. The loss draws the margin to 1 / (2 * beta) nats.

    Returns:
        One loss per example (1 / (4 * beta ** 2) where the margin is 0); rewards `beta * log-ratio`, whose margin is drawn to 1/2.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_ratio = policy_chosen_logps - reference_chosen_logps
    rejected_ratio = policy_rejected_logps - reference_rejected_logps
    loss = (chosen_ratio - rejected_ratio - 1 / (2 * beta)) ** 2
    return ObjectiveOutput(loss, {"chosen": beta * chosen_ratio, "rejected": beta * rejected_ratio})
