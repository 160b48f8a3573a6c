"""KTO: each answer is judged by itself, against a reference point estimated from the whole batch."""

from torch import sigmoid

from medvlm_dpo.objectives.ranges import not_negative, positive, refuse
from medvlm_dpo.objectives.statistics import PairKl, Scalar
from medvlm_dpo.vocab import ObjectiveOutput, PerExample


def kto(  # noqa: PLR0913 - every tensor is a parameter: the signature is the contract
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    chosen_present: PerExample,
    rejected_present: PerExample,
    unmatched_kl: Scalar,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> ObjectiveOutput:
    """Kahneman-Tversky optimisation: the chosen answer is desirable, the rejected one undesirable, each may be absent.

    With z0 = `unmatched_kl` and the log-ratio policy minus reference of the answer:
    desirable `desirable_weight * (1 - sigmoid(beta * (log-ratio - z0)))`,
    undesirable `undesirable_weight * (1 - sigmoid(beta * (z0 - log-ratio)))`.
    The answers of one example share its weight: an example with both contributes their average, an example with one that one. An absent
    answer has no part in value or gradient. Source: https://arxiv.org/abs/2402.01306.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats, 0 where absent; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        chosen_present: [example], 1 where the example has a chosen answer, else 0. Every example has at least one answer.
        rejected_present: the same of the rejected answer.
        unmatched_kl: z0, one number per global batch, nats, no gradient.
        beta: strength of the pull to the reference, > 0, dimensionless.
        desirable_weight: weight of desirable answers, >= 0 (lambda_D).
        undesirable_weight: weight of undesirable answers, >= 0 (lambda_U).

    Returns:
        One loss per example; rewards `beta * log-ratio` of the chosen and the rejected answer.

    Raises:
        InputError: if a setting is out of its range.
    """
    refuse(positive({"beta": beta}) + not_negative({"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps)
    # 1 - sigmoid(x) is sigmoid(-x), which keeps its digits for large x
    desirable = desirable_weight * sigmoid(beta * unmatched_kl - chosen_reward)
    undesirable = undesirable_weight * sigmoid(rejected_reward - beta * unmatched_kl)
    loss = (chosen_present * desirable + rejected_present * undesirable) / (chosen_present + rejected_present)
    return ObjectiveOutput(loss, {"chosen": chosen_reward, "rejected": rejected_reward})


def kto_pair(
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    pair_kl: PairKl,
    *,
    beta: float,
) -> ObjectiveOutput:
    """KTO on pairs: each answer is judged against the other kind's mean log-ratio; the loss is the average of the two.

    With a and b the log-ratios, policy minus reference, of the chosen and the rejected answer:
    chosen `1 - sigmoid(beta * (a - pair_kl.rejected))`, rejected `1 - sigmoid(beta * (pair_kl.chosen - b))`.
    `kto` reads one reference point from mismatched answers instead. Source: the `kto_pair` loss of TRL's DPO trainer up to version 0.8.6;
    KTO is https://arxiv.org/abs/2402.01306.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_logps: of the rejected answer.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        pair_kl: mean log-ratios of the chosen and of the rejected answers of the global batch, each at least 0, nats, no gradient.
        beta: strength of the pull to the reference, > 0, dimensionless.

    Returns:
        One loss per example (1/2 where policy and reference agree); rewards `beta * log-ratio` of the chosen and the rejected answer.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - reference_rejected_logps)
    # 1 - sigmoid(x) is sigmoid(-x), which keeps its digits for large x
    chosen_part = sigmoid(beta * pair_kl.rejected - chosen_reward)
    rejected_part = sigmoid(rejected_reward - beta * pair_kl.chosen)
    return ObjectiveOutput((chosen_part + rejected_part) / 2, {"chosen": chosen_reward, "rejected": rejected_reward})
