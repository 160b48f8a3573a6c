"""Losses that pull each answer to a target of its own, where the margin alone would leave both free to fall together."""

from torch import relu, sigmoid
from torch.nn.functional import logsigmoid

from medvlm_dpo.objectives.ranges import not_negative, positive, refuse
from medvlm_dpo.vocab import ObjectiveOutput, PerExample


def apo_zero(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    *,
    beta: float,
) -> ObjectiveOutput:
    """Anchored preference optimisation, zero: `(1 - sigmoid(beta * a)) + sigmoid(beta * b)`.

    a and b are the log-ratios of the chosen and the rejected answer: the chosen one is pushed up, the rejected one down. For chosen answers
    that are better than the model's own. Source: https://arxiv.org/abs/2408.06266.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        beta: strength of the pull to the reference, > 0, dimensionless.

    Returns:
        One loss per example, between 0 and 2 (1 where both log-ratios are 0); rewards `beta * log-ratio`.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps)
    # 1 - sigmoid(x) is sigmoid(-x), which keeps its digits for large x
    return ObjectiveOutput(sigmoid(-chosen_reward) + sigmoid(rejected_reward), {"chosen": chosen_reward, "rejected": rejected_reward})


def apo_down(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    *,
    beta: float,
) -> ObjectiveOutput:
    """Anchored preference optimisation, down: `sigmoid(beta * a) + (1 - sigmoid(beta * (a - b)))`.

    a and b are the log-ratios of the chosen and the rejected answer: both are pushed down, the rejected one more. For a model that is
    better than the chosen answers. Source: https://arxiv.org/abs/2408.06266.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        beta: strength of the pull to the reference, > 0, dimensionless.

    Returns:
        One loss per example, between 0 and 2 (1 where both log-ratios are 0); rewards `beta * log-ratio`.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps)
    # 1 - sigmoid(x) is sigmoid(-x), which keeps its digits for large x
    return ObjectiveOutput(
        sigmoid(chosen_reward) + sigmoid(rejected_reward - chosen_reward), {"chosen": chosen_reward, "rejected": rejected_reward}
    )


def nca(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    *,
    beta: float,
) -> ObjectiveOutput:
    """Noise contrastive alignment of a pair: `-log sigmoid(x) - log sigmoid(-x) / 2 - log sigmoid(-y) / 2`.

    x and y are beta times the log-ratios of the chosen and the rejected answer. `bco_pair` without its shift has neither the second term
    nor the halves. Source: https://arxiv.org/abs/2402.05369.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        beta: strength of the pull to the reference, > 0, dimensionless.

    Returns:
        One loss per example (2 ln 2 where both log-ratios are 0); rewards `beta * log-ratio`, of which the chosen one is drawn to ln 2.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps)
    loss = -logsigmoid(chosen_reward) - logsigmoid(-chosen_reward) / 2 - logsigmoid(-rejected_reward) / 2
    return ObjectiveOutput(loss, {"chosen": chosen_reward, "rejected": rejected_reward})


def sppo_hard(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    *,
    beta: float,
) -> ObjectiveOutput:
    """Self-play preference optimisation, hard labels: `(a - 1 / (2 * beta)) ** 2 + (b + 1 / (2 * beta)) ** 2`.

    a and b are the log-ratios of the chosen and the rejected answer; the first is drawn up, the second down, by 1 / (2 * beta) nats.
    Source: https://arxiv.org/abs/2405.00675, where beta is 1 / eta.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        beta: strength of the pull to the reference, > 0, dimensionless.

    Returns:
        One loss per example (1 / (2 * beta ** 2) where both log-ratios are 0); rewards `beta * log-ratio`, drawn to 1/2 and -1/2.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_ratio = policy_chosen_logps - reference_chosen_logps
    rejected_ratio = policy_rejected_logps - reference_rejected_logps
    loss = (chosen_ratio - 1 / (2 * beta)) ** 2 + (rejected_ratio + 1 / (2 * beta)) ** 2
    return ObjectiveOutput(loss, {"chosen": beta * chosen_ratio, "rejected": beta * rejected_ratio})


def cal_dpo(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    *,
    beta: float,
    calibration_weight: float,
) -> ObjectiveOutput:
    """Calibrated DPO: `-log sigmoid(a - b) + calibration_weight * ((a - 1 / (2 * beta)) ** 2 + (b + 1 / (2 * beta)) ** 2)`.

    a and b are the log-ratios of the chosen and the rejected answer. There is no beta in the sigmoid: beta sets the targets alone.
    Source: https://arxiv.org/abs/2412.14516.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        beta: inverse of twice the target log-ratio, > 0, dimensionless.
        calibration_weight: of the squared distances to the targets, >= 0, per square nat.

    Returns:
        One loss per example (ln 2 + calibration_weight / (2 * beta ** 2) where both log-ratios are 0); rewards `beta * log-ratio`.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta}) + not_negative({"calibration_weight": calibration_weight}))
    chosen_ratio = policy_chosen_logps - reference_chosen_logps
    rejected_ratio = policy_rejected_logps - reference_rejected_logps
    distance = (chosen_ratio - 1 / (2 * beta)) ** 2 + (rejected_ratio + 1 / (2 * beta)) ** 2
    loss = -logsigmoid(chosen_ratio - rejected_ratio) + calibration_weight * distance
    return ObjectiveOutput(loss, {"chosen": beta * chosen_ratio, "rejected": beta * rejected_ratio})


def dpop(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    *,
    beta: float,
    penalty: float,
) -> ObjectiveOutput:
    """DPO-positive: `-log sigmoid(beta * (a - b - penalty * max(0, -a)))`.

    a and b are the log-ratios of the chosen and the rejected answer; the penalty holds the chosen answer at least as likely as under the
    reference, and stands inside beta. Source: https://arxiv.org/abs/2402.13228.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        beta: strength of the pull to the reference, > 0, dimensionless.
        penalty: per nat by which the chosen answer has become less likely (lambda), >= 0, dimensionless; at 0 this is `dpo`.

    Returns:
        One loss per example (ln 2 where both log-ratios are 0); rewards `beta * log-ratio`, the chosen one less its penalty.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta}) + not_negative({"penalty": penalty}))
    chosen_fall = relu(reference_chosen_logps - policy_chosen_logps)
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps - penalty * chosen_fall)
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps)
    return ObjectiveOutput(-logsigmoid(chosen_reward - rejected_reward), {"chosen": chosen_reward, "rejected": rejected_reward})
