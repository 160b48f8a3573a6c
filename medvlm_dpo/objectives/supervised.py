"""Supervised baselines: the likelihood of the chosen answer alone."""

from medvlm_dpo.vocab import ObjectiveOutput, PerExample


def sft(policy_chosen_mean_logps: PerExample) -> ObjectiveOutput:
    """Supervised fine-tuning on the chosen answer: minus its mean log-probability per response token.

    This is the per-sequence mean, one of three normalisations in use: a short answer weighs as much as a long one. The sum over
    tokens and the mean over all tokens of the batch are other losses. Maximum likelihood needs no reference and ranks nothing.
    Source: the benchmark's supervised baseline, https://arxiv.org/abs/2601.17918.

    Args:
        policy_chosen_mean_logps: [example], mean over response tokens, end-of-sequence included, nats.

    Returns:
        One loss per example in nats per token; no rewards, because the loss compares nothing.
    """
    return ObjectiveOutput(-policy_chosen_mean_logps, {})
