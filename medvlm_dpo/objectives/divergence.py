"""Losses that follow from another divergence than the reverse KL of DPO, or from another loss of the margin than the logistic one."""

import math

from torch import exp, expm1, sigmoid
from torch.nn.functional import logsigmoid

from medvlm_dpo.objectives.ranges import below, positive, refuse
from medvlm_dpo.vocab import ObjectiveOutput, PerExample


def f_dpo_js(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    *,
    beta: float,
) -> ObjectiveOutput:
    """f-DPO with the Jensen-Shannon divergence: `-log sigmoid(beta * (f'(a) - f'(b)))`, `f'(x) = ln 2 + log sigmoid(x)`.

    a and b are the log-ratios of the chosen and the rejected answer. With the reverse KL, `f'(x) = x`, f-DPO is `dpo`.
    Source: https://arxiv.org/abs/2309.16240.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        beta: strength of the pull to the reference, > 0, dimensionless.

    Returns:
        One loss per example (ln 2 where the margin is 0); rewards `beta * f'`, 0 where policy and reference agree and at most beta ln 2.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_reward = beta * (math.log(2) + logsigmoid(policy_chosen_logps - reference_chosen_logps))
    rejected_reward = beta * (math.log(2) + logsigmoid(policy_rejected_logps - reference_rejected_logps))
    return ObjectiveOutput(-logsigmoid(chosen_reward - rejected_reward), {"chosen": chosen_reward, "rejected": rejected_reward})


def f_dpo_forward_kl(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    *,
    beta: float,
    max_exponent: float,
) -> ObjectiveOutput:
    """f-DPO with the forward KL: `-log sigmoid(beta * (f'(a) - f'(b)))`, `f'(x) = 1 - exp(-x)`.

    a and b are the log-ratios of the chosen and the rejected answer. Source: https://arxiv.org/abs/2309.16240.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        beta: strength of the pull to the reference, > 0, dimensionless.
        max_exponent: largest exponent (a log-ratio is negated in it) that is exponentiated; beyond it the gradient is 0; > 0.

    Returns:
        One loss per example (ln 2 where the margin is 0); rewards `beta * f'`, 0 where policy and reference agree and at most beta.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta, "max_exponent": max_exponent}))
    # 1 - exp(-x) is -expm1(-x), which keeps its digits for small log-ratios
    chosen_reward = -beta * expm1((reference_chosen_logps - policy_chosen_logps).clamp(max=max_exponent))
    rejected_reward = -beta * expm1((reference_rejected_logps - policy_rejected_logps).clamp(max=max_exponent))
    return ObjectiveOutput(-logsigmoid(chosen_reward - rejected_reward), {"chosen": chosen_reward, "rejected": rejected_reward})


def f_dpo_alpha(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    *,
    beta: float,
    order: float,
    max_exponent: float,
) -> ObjectiveOutput:
    """f-DPO with an alpha divergence: `-log sigmoid(beta * (f'(a) - f'(b)))`, `f'(x) = (1 - exp(-order * x)) / order`.

    a and b are the log-ratios of the chosen and the rejected answer. Order 0 would be `dpo`, order 1 `f_dpo_forward_kl`.
    Source: https://arxiv.org/abs/2309.16240. TRL's coefficient is 1 - order.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        beta: strength of the pull to the reference, > 0, dimensionless.
        order: of the divergence (alpha), > 0 and < 1, dimensionless.
        max_exponent: largest exponent (-order * log-ratio) that is exponentiated; beyond it the gradient is 0; > 0.

    Returns:
        One loss per example (ln 2 where the margin is 0); rewards `beta * f'`, 0 where policy and reference agree and at most beta / order.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta, "order": order, "max_exponent": max_exponent}) + below({"order": order}, 1))
    chosen_exponent = (order * (reference_chosen_logps - policy_chosen_logps)).clamp(max=max_exponent)
    rejected_exponent = (order * (reference_rejected_logps - policy_rejected_logps)).clamp(max=max_exponent)
    chosen_reward = -beta * expm1(chosen_exponent) / order
    rejected_reward = -beta * expm1(rejected_exponent) / order
    return ObjectiveOutput(-logsigmoid(chosen_reward - rejected_reward), {"chosen": chosen_reward, "rejected": rejected_reward})


def exo(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    *,
    beta: float,
    flip_rate: float,
) -> ObjectiveOutput:
    """Efficient exact optimisation of a pair: `q * (log q - log(1 - flip_rate)) + (1 - q) * (log(1 - q) - log flip_rate)`.

    q is the sigmoid of beta times the difference of the two log-ratios: the reverse KL from (q, 1 - q) to the smoothed labels, 0 at its
    lowest. `cdpo` is the forward KL to the same labels, up to a constant. Source: https://arxiv.org/abs/2402.00856.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        beta: strength of the pull to the reference, > 0, dimensionless.
        flip_rate: label of the rejected answer, > 0 and < 1.

    Returns:
        One loss per example (-ln 2 - (log(1 - flip_rate) + log flip_rate) / 2 where the margin is 0); rewards `beta * log-ratio`.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta, "flip_rate": flip_rate}) + below({"flip_rate": flip_rate}, 1))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps)
    margin = chosen_reward - rejected_reward
    loss = sigmoid(margin) * (logsigmoid(margin) - math.log1p(-flip_rate)) + sigmoid(-margin) * (logsigmoid(-margin) - math.log(flip_rate))
    return ObjectiveOutput(loss, {"chosen": chosen_reward, "rejected": rejected_reward})


def exo_released(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    *,
    beta: float,
    rejected_log_label: float,
) -> ObjectiveOutput:
    """EXO as released: `q * log q + (1 - q) * (log(1 - q) - rejected_log_label)`, labels that do not sum to 1.

    q is the sigmoid of beta times the difference of the two log-ratios. The chosen answer's log-label is 0. With normalised labels it is
    `exo`, whose flip rate is close to exp(rejected_log_label). Source: https://arxiv.org/abs/2402.00856, the authors' code.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        beta: strength of the pull to the reference, > 0, dimensionless.
        rejected_log_label: log-label of the rejected answer, < 0, nats.

    Returns:
        One loss per example (-ln 2 - rejected_log_label / 2 where the margin is 0); rewards `beta * log-ratio`.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta}) + below({"rejected_log_label": rejected_log_label}, 0))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps)
    margin = chosen_reward - rejected_reward
    loss = sigmoid(margin) * logsigmoid(margin) + sigmoid(-margin) * (logsigmoid(-margin) - rejected_log_label)
    return ObjectiveOutput(loss, {"chosen": chosen_reward, "rejected": rejected_reward})


def discopop(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    *,
    beta: float,
    temperature: float,
    max_exponent: float,
) -> ObjectiveOutput:
    """Log-ratio modulated loss (LRML): `-(1 - m) * log sigmoid(x) + m * exp(-x)` with `m = sigmoid(x / temperature)`.

    x is beta times the difference of the two log-ratios: logistic where the pair is ordered wrongly, exponential where rightly.
    Source: https://arxiv.org/abs/2406.08414.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        beta: strength of the pull to the reference, > 0, dimensionless.
        temperature: of the modulation, > 0, in units of x; beta equal to it modulates by the raw margin.
        max_exponent: largest -x that is exponentiated; beyond it the exponential has no gradient; > 0.

    Returns:
        One loss per example ((ln 2 + 1) / 2 where the margin is 0); rewards `beta * log-ratio`.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta, "temperature": temperature, "max_exponent": max_exponent}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps)
    margin = chosen_reward - rejected_reward
    logistic = -sigmoid(-margin / temperature) * logsigmoid(margin)
    exponential = sigmoid(margin / temperature) * exp((-margin).clamp(max=max_exponent))
    return ObjectiveOutput(logistic + exponential, {"chosen": chosen_reward, "rejected": rejected_reward})
