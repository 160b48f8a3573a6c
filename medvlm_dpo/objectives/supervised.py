"""Supervised baselines: the likelihood of the chosen answer alone, in the three normalisations that are in use."""

from medvlm_dpo.objectives.statistics import Scalar
from medvlm_dpo.vocab import ObjectiveOutput, PerExample


def sft(policy_chosen_mean_logps: PerExample) -> ObjectiveOutput:
    """Supervised fine-tuning on the chosen answer: minus its mean log-probability per response token.

    This is the per-sequence mean, one of three normalisations in use: a short answer weighs as much as a long one. The sum over
    tokens (`sft_sum`) and the mean over all tokens of the batch (`sft_token_mean`) are other losses. Maximum likelihood needs no reference
    and ranks nothing. Source: the benchmark's supervised baseline, https://arxiv.org/abs/2601.17918.

    Args:
        policy_chosen_mean_logps: [example], mean over response tokens, end-of-sequence included, nats.

    Returns:
        One loss per example in nats per token; no rewards, because the loss compares nothing.
    """
    return ObjectiveOutput(-policy_chosen_mean_logps, {})


def sft_sum(policy_chosen_logps: PerExample) -> ObjectiveOutput:
    """Supervised fine-tuning on the chosen answer: minus its log-probability, summed over response tokens.

    An answer weighs by its length, and the value is about that many times the one of `sft`: beside a preference loss the same weight means
    much more here. Source: the supervised mode of the authors' code of direct preference optimisation, https://arxiv.org/abs/2305.18290.

    Args:
        policy_chosen_logps: [example], summed over response tokens, end-of-sequence included, nats.

    Returns:
        One loss per example in nats per answer; no rewards, because the loss compares nothing.
    """
    return ObjectiveOutput(-policy_chosen_logps, {})


def sft_token_mean(policy_chosen_logps: PerExample, mean_chosen_length: Scalar) -> ObjectiveOutput:
    """Supervised fine-tuning on the chosen answer: minus its summed log-probability, divided by the batch's mean length.

    The plain mean over the examples is then minus the mean log-probability over all response tokens of the global batch: every token weighs
    the same, whichever answer it stands in, while `sft` lets every answer weigh the same. Both agree where all answers are equally long.
    Source: the supervised term of TRL's trainers, e.g. of contrastive preference optimisation, https://arxiv.org/abs/2401.08417.

    Args:
        policy_chosen_logps: [example], summed over response tokens, end-of-sequence included, nats.
        mean_chosen_length: mean number of response tokens over the global batch, one number.

    Returns:
        One loss per example in nats per token of a mean answer; no rewards, because the loss compares nothing.
    """
    return ObjectiveOutput(-policy_chosen_logps / mean_chosen_length, {})
