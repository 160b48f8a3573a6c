"""Estimators: pure functions from the whole global batch to a batch statistic that an objective asks for by name.

An estimator's positional parameters are per-example tensors and facts of the same grammar as an objective's; its values carry no gradient.
It returns a scalar, one number per example, or a named tuple of these. One that asks for `previous` (a dict of 0-dim tensors, empty at the
first step) returns the pair (value, new state).
"""

from jaxtyping import Float
from torch import Tensor

from medvlm_dpo.vocab import PerExample

Scalar = Float[Tensor, ""]


def mean_chosen_length(chosen_lengths: PerExample) -> Scalar:
    """Mean number of response tokens of the chosen answers of the global batch.

    Args:
        chosen_lengths: [example], response tokens, end-of-sequence included.
    """
    return chosen_lengths.mean()


def unmatched_kl(detached_policy_unmatched_logps: PerExample, reference_unmatched_logps: PerExample) -> Scalar:
    """KTO's z0: the mean log-ratio of answers that belong to other examples, an estimate of KL(policy, reference) in nats.

    The average is clamped at 0, never a single example. Source: https://arxiv.org/abs/2402.01306.

    Args:
        detached_policy_unmatched_logps: [example], this image and prompt with another example's answer, summed over tokens, nats.
        reference_unmatched_logps: the same under the reference.
    """
    return (detached_policy_unmatched_logps - reference_unmatched_logps).mean().clamp(min=0)
