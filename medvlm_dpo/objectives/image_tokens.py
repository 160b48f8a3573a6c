"""Losses of the chosen answer against tokens that the model itself holds likely in its place.

Policy and reference each pick their own tokens, so a log-ratio of such tokens compares two different token sequences.
"""

from torch.nn.functional import logsigmoid

from medvlm_dpo.objectives.ranges import positive, refuse
from medvlm_dpo.vocab import ObjectiveOutput, PerExample


def hallucination_dpo(
    policy_chosen_logps: PerExample,
    policy_chosen_hallucinated_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_chosen_hallucinated_logps: PerExample,
    *,
    beta: float,
) -> ObjectiveOutput:
    """POVID's second preference: `-log sigmoid(beta * ((chosen log-ratio) - (hallucinated log-ratio)))`, all on the true image.

    Hallucinated tokens are those a model holds likeliest at each position of the chosen answer when it sees the corrupted image; scored
    is their log-probability on the true image. The choice of tokens carries no gradient. Source: https://arxiv.org/abs/2402.11411.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_chosen_hallucinated_logps: of the policy's hallucinated tokens.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_chosen_hallucinated_logps: of the reference's own hallucinated tokens under the reference.
        beta: strength of the pull to the reference, > 0, dimensionless.

    Returns:
        One loss per example (ln 2 where the margin is 0); reward `beta * log-ratio` of the chosen answer.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    hallucinated_reward = beta * (policy_chosen_hallucinated_logps - reference_chosen_hallucinated_logps)
    return ObjectiveOutput(-logsigmoid(chosen_reward - hallucinated_reward), {"chosen": chosen_reward})


def top_wrong_dpo(
    policy_chosen_logps: PerExample,
    policy_rejected_top_wrong_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_top_wrong_logps: PerExample,
    *,
    beta: float,
) -> ObjectiveOutput:
    """Dpo as Re-Align released it: the rejected side scores the likeliest token that is not the label, not the label.

    `-log sigmoid(beta * ((chosen log-ratio) - (log-ratio of the top wrong tokens of the rejected answer)))`.
    Source: https://arxiv.org/abs/2502.13146, its released code.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_top_wrong_logps: at each position of the rejected answer the policy's likeliest token that is not the label.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_top_wrong_logps: the same under the reference, of the reference's own likeliest wrong tokens.
        beta: strength of the pull to the reference, > 0, dimensionless.

    Returns:
        One loss per example (ln 2 where the margin is 0); rewards `beta * log-ratio`, of the top wrong tokens on the rejected side.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_reward = beta * (policy_rejected_top_wrong_logps - reference_rejected_top_wrong_logps)
    return ObjectiveOutput(-logsigmoid(chosen_reward - rejected_reward), {"chosen": chosen_reward, "rejected": rejected_reward})


def top_wrong_copo(
    policy_chosen_logps: PerExample,
    policy_chosen_corrupt_top_wrong_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_chosen_corrupt_top_wrong_logps: PerExample,
    *,
    beta: float,
) -> ObjectiveOutput:
    """Copo as Re-Align released it: on the other image it scores the likeliest token that is not the label, not the label.

    `-log sigmoid(beta * ((chosen log-ratio) - (log-ratio of the top wrong tokens of the chosen answer on the other image)))`.
    Source: https://arxiv.org/abs/2502.13146, its released code.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_chosen_corrupt_top_wrong_logps: at each position of the chosen answer, on the other image, the policy's likeliest token that
            is not the label.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_chosen_corrupt_top_wrong_logps: the same under the reference, of the reference's own likeliest wrong tokens.
        beta: strength of the pull to the reference, > 0, dimensionless.

    Returns:
        One loss per example (ln 2 where the margin is 0); rewards `beta * log-ratio`, of the top wrong tokens on the other image.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    corrupt_reward = beta * (policy_chosen_corrupt_top_wrong_logps - reference_chosen_corrupt_top_wrong_logps)
    return ObjectiveOutput(-logsigmoid(chosen_reward - corrupt_reward), {"chosen": chosen_reward, "chosen_corrupt": corrupt_reward})
