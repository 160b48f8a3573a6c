"""Hidden states and labels -> per-token values, one function a base -> the tensors an objective asks for by name."""

import inspect
from collections.abc import Callable, Iterable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from medvlm_dpo.vocab import Batch, PerExample, PerToken, TensorName

TokenValues = Mapping[str, Float[Tensor, " response_token"]]  # by base
LogProbs = Float[Tensor, "token vocab"]
PerLabel = Float[Tensor, " token"]
Head = Callable[[Tensor], Tensor]


# --- one function a base: [token, vocab] log-probabilities -> one value per token, nats ------------------------------


def log_probs(hidden: Float[Tensor, "token hidden"], head: Head) -> LogProbs:
    """Log-probabilities of the whole vocabulary; the softmax runs in float32 or better.

    Args:
        hidden: hidden states at the positions that predict the tokens.
        head: hidden states to logits.
    """
    logits = head(hidden)
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def label_logps(policy: LogProbs, labels: Int[Tensor, " token"]) -> PerLabel:
    """Log-probability of every label."""
    return policy.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def collision_logps(policy: LogProbs) -> PerLabel:
    """Log of the probability that two draws from the distribution agree: log of the sum over the vocabulary of p squared."""
    return (2 * policy).logsumexp(-1)


def top_wrong_logps(policy: LogProbs, labels: Int[Tensor, " token"]) -> PerLabel:
    """Log-probability of the likeliest token that is not the label."""
    return policy.scatter(-1, labels.unsqueeze(-1), -torch.inf).amax(-1)


def hallucinated_logps(policy: LogProbs, corrupt: LogProbs) -> PerLabel:
    """Log-probability, true image, of the token that is likeliest on the corrupted image."""
    return label_logps(policy, corrupt.argmax(-1))


def image_kl(policy: LogProbs, corrupt: LogProbs) -> PerLabel:
    """KL divergence from the distribution on the true image to that on the corrupted one."""
    return divergence(policy, corrupt)


def forward_kl(policy: LogProbs, reference: LogProbs) -> PerLabel:
    """KL divergence from the reference's distribution to the policy's."""
    return divergence(reference, policy)


def divergence(first: LogProbs, second: LogProbs) -> PerLabel:
    """KL(first, second), the sum over the vocabulary of p (log p - log q): exactly 0 where both are the same."""
    return (first.exp() * (first - second)).sum(-1)


# By base. A parameter's name says what is read: `policy` (the scoring model's own distribution), `labels`, `corrupt` (the same model's
# distribution on the corrupted image) and `reference`; the last two never carry gradient.
FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "logps": label_logps,
    "collision_logps": collision_logps,
    "top_wrong_logps": top_wrong_logps,
    "hallucinated_logps": hallucinated_logps,
    "image_kl": image_kl,
    "forward_kl": forward_kl,
}
READINGS: Mapping[str, tuple[str, ...]] = {base: tuple(inspect.signature(function).parameters) for base, function in FUNCTIONS.items()}

# --- from values per token to the tensors of the grammar ---------------------------------------------------------------


def served_tensors(names: Iterable[TensorName], batch: Batch, values: Mapping[str, TokenValues]) -> dict[str, Tensor]:
    """The tensors of an objective, by name.

    Args:
        names: what to serve.
        batch: says which answer of the rows belongs to which example and view.
        values: per-token values by model (`policy`, `reference`), then by base; `detached_policy` is cut from `policy`.

    Returns:
        `[example]` in float64 for sums and means, `[example, token]` for `token_`; rows of absent answers hold 0.
    """
    return {str(name): _serve(name, batch, values) for name in names}


def _serve(name: TensorName, batch: Batch, values: Mapping[str, TokenValues]) -> Tensor:
    source = values["policy" if name.model == "detached_policy" else name.model][name.base]
    if name.model != "policy":
        source = source.detach()
    answers = batch.answers[name.view]
    if name.reduction == "token_":
        return _rows_of(padded(source, batch.rows.answer_index, batch.rows.num_answers), answers)
    zeros = torch.zeros(batch.rows.num_answers, dtype=torch.float64, device=source.device)
    sums = zeros.index_add(0, batch.rows.answer_index, source.double())
    if name.reduction == "mean_":
        sums = sums / answer_lengths(batch)
    return _rows_of(sums, answers)


def answer_lengths(batch: Batch) -> Int[Tensor, " answer"]:
    """Response tokens of every scored answer, end-of-sequence included.

    Raises:
        ValueError: if an answer has none; its mean would be undefined.
    """
    lengths = torch.bincount(batch.rows.answer_index, minlength=batch.rows.num_answers)
    if bool((lengths == 0).any()):
        empty = [index for index, length in enumerate(lengths) if int(length) == 0]
        raise ValueError(f"empty response in answers {empty} of examples {', '.join(batch.example_ids)}; truncated away?")
    return lengths


def padded(source: Float[Tensor, " response_token"], answer_index: Int[Tensor, " response_token"], num_answers: int) -> PerToken:
    """Per-token values as one row per answer, right-padded with exact 0 to one common width."""
    lengths = torch.bincount(answer_index, minlength=num_answers)
    columns = places_within(answer_index, lengths.cumsum(0) - lengths)
    return source.new_zeros((num_answers, int(lengths.max()))).index_put((answer_index, columns), source)


def places_within(answer_index: Int[Tensor, " response_token"], starts: Int[Tensor, " answer"]) -> Int[Tensor, " response_token"]:
    """Every response token's place in its own answer, from 0, given where the answers begin."""
    return torch.arange(len(answer_index), device=answer_index.device) - starts[answer_index]


def _rows_of(values: Tensor, answers: Int[Tensor, " example"]) -> PerExample | PerToken:
    rows = values[answers.clamp(min=0)]
    present = (answers >= 0).reshape(-1, *[1] * (rows.dim() - 1))
    return torch.where(present, rows, torch.zeros_like(rows))
