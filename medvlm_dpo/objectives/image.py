"""Losses of an answer on the true image against an answer on the corrupted one, and the anchor that mDPO adds to them."""

from torch.nn.functional import logsigmoid

from medvlm_dpo.objectives.ranges import not_negative, positive, refuse
from medvlm_dpo.objectives.statistics import Scalar
from medvlm_dpo.vocab import ObjectiveOutput, PerExample


def copo(
    policy_chosen_logps: PerExample,
    policy_chosen_corrupt_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_chosen_corrupt_logps: PerExample,
    *,
    beta: float,
) -> ObjectiveOutput:
    """Conditional preference optimisation: `-log sigmoid(beta * ((log-ratio, true image) - (log-ratio, corrupted image)))`.

    Both log-ratios are of the chosen answer; the rejected one is not read. Gradient flows through both images.
    Source: https://arxiv.org/abs/2406.11839 (mDPO), one of its three terms.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_chosen_corrupt_logps: of the same answer on the corrupted image.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_chosen_corrupt_logps: of the same answer under the reference, on the same corrupted image.
        beta: strength of the pull to the reference, > 0, dimensionless.

    Returns:
        One loss per example (ln 2 where the margin is 0); rewards `beta * log-ratio` of the chosen answer on either image.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    corrupt_reward = beta * (policy_chosen_corrupt_logps - reference_chosen_corrupt_logps)
    return ObjectiveOutput(-logsigmoid(chosen_reward - corrupt_reward), {"chosen": chosen_reward, "chosen_corrupt": corrupt_reward})


def anchor(policy_chosen_logps: PerExample, reference_chosen_logps: PerExample, *, beta: float, margin: float) -> ObjectiveOutput:
    """Anchor of the chosen answer: `-log sigmoid(beta * (chosen log-ratio) - margin)`, so that its likelihood does not fall.

    The margin is subtracted from the scaled reward; it is not multiplied by beta. No image is compared.
    Source: https://arxiv.org/abs/2406.11839 (mDPO), one of its three terms.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats.
        reference_chosen_logps: of the chosen answer under the reference.
        beta: strength of the pull to the reference, > 0, dimensionless.
        margin: what the chosen reward should exceed, >= 0, dimensionless.

    Returns:
        One loss per example (softplus(margin) where policy and reference agree); reward `beta * log-ratio` of the chosen answer.

    Raises:
        InputError: if beta is not positive or margin is negative.
    """
    refuse(positive({"beta": beta}) + not_negative({"margin": margin}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    return ObjectiveOutput(-logsigmoid(chosen_reward - margin), {"chosen": chosen_reward})


def mmedpo(
    policy_chosen_logps: PerExample,
    policy_rejected_corrupt_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_corrupt_logps: PerExample,
    pair_weight: PerExample,
    weight_scale: Scalar,
    *,
    beta: float,
) -> ObjectiveOutput:
    """MMedPO: `-(pair_weight / weight_scale) * log sigmoid(beta * ((chosen log-ratio) - (rejected log-ratio, corrupted image)))`.

    Unlike copo the other side is the rejected answer, so the margin mixes text and image; where the record's corrupted image is its true
    one, this is a weighted dpo. Source: https://arxiv.org/abs/2412.06141.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other three.
        policy_rejected_corrupt_logps: of the rejected answer on the corrupted image.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_corrupt_logps: of the rejected answer on the corrupted image, under the reference.
        pair_weight: [example], >= 0, the clinical relevance of the pair.
        weight_scale: one number per global batch: 1 leaves the weights as they are, their mean makes the loss a weighted mean.
        beta: strength of the pull to the reference, > 0, dimensionless.

    Returns:
        One loss per example (ln 2 times the weight where the margin is 0); rewards `beta * log-ratio`, without the weight.

    Raises:
        InputError: if beta is not positive.
    """
    refuse(positive({"beta": beta}))
    chosen_reward = beta * (policy_chosen_logps - reference_chosen_logps)
    corrupt_reward = beta * (policy_rejected_corrupt_logps - reference_rejected_corrupt_logps)
    loss = -pair_weight / weight_scale * logsigmoid(chosen_reward - corrupt_reward)
    return ObjectiveOutput(loss, {"chosen": chosen_reward, "rejected_corrupt": corrupt_reward})


def v_dpo(  # noqa: PLR0913 - every tensor is a parameter: the signature is the contract
    policy_chosen_logps: PerExample,
    policy_rejected_logps: PerExample,
    detached_policy_chosen_corrupt_logps: PerExample,
    detached_policy_rejected_corrupt_logps: PerExample,
    reference_chosen_logps: PerExample,
    reference_rejected_logps: PerExample,
    *,
    beta: float,
    guidance: float,
) -> ObjectiveOutput:
    """V-DPO: dpo with the policy's log-probabilities guided away from those on the corrupted (blank) image.

    Guided log-probability: `guidance * (true image) - (guidance - 1) * (corrupted image, no gradient)`; the reference is not guided.
    It is linear, so that sums over tokens serve as well as the tokens. Source: https://arxiv.org/abs/2411.02712.

    Args:
        policy_chosen_logps: [example], summed over response tokens, nats; likewise the other five.
        policy_rejected_logps: of the rejected answer.
        detached_policy_chosen_corrupt_logps: of the chosen answer on the corrupted image, without gradient.
        detached_policy_rejected_corrupt_logps: of the rejected answer on the corrupted image, without gradient.
        reference_chosen_logps: of the chosen answer under the reference.
        reference_rejected_logps: of the rejected answer under the reference.
        beta: strength of the pull to the reference, > 0, dimensionless.
        guidance: 1 is dpo, above 1 contrasts with the corrupted image, dimensionless, > 0.

    Returns:
        One loss per example; rewards `beta * (guided - reference)`. Where policy and reference agree the margin is 0 at guidance 1 only.

    Raises:
        InputError: if beta or guidance is not positive.
    """
    why = "; at 0 only the corrupted image's log-probabilities are left, which carry no gradient: nothing would be trained (1 is plain dpo)"
    refuse(positive({"beta": beta}) + [problem + why for problem in positive({"guidance": guidance})])
    guided_chosen = guidance * policy_chosen_logps - (guidance - 1) * detached_policy_chosen_corrupt_logps
    guided_rejected = guidance * policy_rejected_logps - (guidance - 1) * detached_policy_rejected_corrupt_logps
    chosen_reward = beta * (guided_chosen - reference_chosen_logps)
    rejected_reward = beta * (guided_rejected - reference_rejected_logps)
    return ObjectiveOutput(-logsigmoid(chosen_reward - rejected_reward), {"chosen": chosen_reward, "rejected": rejected_reward})
