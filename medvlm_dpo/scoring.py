"""Forward passes of one model: which views it scores, which of them with gradient, and the per-token values that come out."""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.data.collate import only_views, tokens_of_views
from medvlm_dpo.logps import FUNCTIONS, Head, LogProbs, TokenValues, answer_lengths, log_probs, places_within
from medvlm_dpo.vocab import BASES, CLEAN_VIEWS, Batch, TensorName, corrupt_view, views_scored_by

HiddenStates = Float[Tensor, "response_token hidden"]
HIDDEN = "hidden"  # beside the bases: the reference's hidden states, where a base of the policy reads them
REFERENCE = "reference"


def policy_values(
    backbone: AbstractBackbone, batch: Batch, names: Collection[TensorName], reference: TokenValues | None = None
) -> TokenValues:
    """Per-token values of the model as it is now, by base; [response_token], 0 where nobody asks.

    Only views that `policy_` tensors ask for run with gradient; the others (KTO's unmatched answers, a blank image) need no backward pass.

    Args:
        backbone: the policy.
        batch: one micro-batch.
        names: what is asked for; the reference's tensors among them are left out.
        reference: what the reference gave, with its hidden states where `forward_kl` is asked for.
    """
    own = [name for name in names if name.model != REFERENCE]
    if not own:
        return {}
    recorded = torch.is_grad_enabled()
    live = _scored(batch, frozenset(name.view for name in own if name.model == "policy" and recorded))
    idle = _scored(batch, views_scored_by("policy", own) - live)
    with torch.no_grad():
        still = hidden_states(backbone, batch, idle) if idle else None
    moving = hidden_states(backbone, batch, live) if live else None
    parts = [(views, hidden) for views, hidden in ((live, moving), (idle, still)) if hidden is not None]
    detached = torch.stack([hidden.detach() for _, hidden in parts]).sum(dim=0)  # each is 0 where the other is not
    compared = _Compared(detached, (reference or {}).get(HIDDEN))
    found = [_values([name for name in own if name.view in views], batch, hidden, compared, backbone.head) for views, hidden in parts]
    return _added(found, {name.base for name in own}, detached)


def frozen_values(backbone: AbstractBackbone, batch: Batch, names: Collection[TensorName]) -> TokenValues:
    """Per-token values of the reference, whose weights are in place now: its own tensors, and its hidden states where a base reads them."""
    own = [name for name in names if name.model == REFERENCE]
    with torch.no_grad():
        hidden = hidden_states(backbone, batch, views_scored_by(REFERENCE, names))
        values = _values(own, batch, hidden, _Compared(hidden, None), backbone.head)
    return {**values, HIDDEN: hidden} if any(BASES[name.base].reads_reference for name in names) else values


def _scored(batch: Batch, views: frozenset[str]) -> frozenset[str]:
    """The views that have an answer in this micro-batch: with unpaired data one can be empty."""
    return frozenset(view for view in views if bool((batch.answers[view] >= 0).any()))


def hidden_states(backbone: AbstractBackbone, batch: Batch, views: Collection[str]) -> HiddenStates:
    """Last hidden states at the positions that predict response tokens, in one pass over some views; 0 at the tokens of the others."""
    if batch.answers.keys() <= set(views):
        return backbone.hidden_states(batch.rows)
    scored = backbone.hidden_states(only_views(batch, views).rows)
    places = tokens_of_views(batch, views).nonzero().squeeze(-1)
    return scored.new_zeros((len(batch.rows.labels), scored.shape[-1])).index_put((places,), scored)


@dataclass(frozen=True)
class _Compared:
    """What a distribution is compared with: hidden states of all views the same model scored, and of the reference; no gradient."""

    own: HiddenStates
    reference: HiddenStates | None


def _values(names: Collection[TensorName], batch: Batch, hidden: HiddenStates, compared: _Compared, head: Head) -> dict[str, Tensor]:
    """Every base over the tokens of the views that ask for it, all from one product with the head."""
    if not names:
        return {}
    places = _places(names, batch)
    with _recording(names):
        policy = log_probs(hidden[places], head)
    bases = {base: [name for name in names if name.base == base] for base in sorted({name.base for name in names})}
    return {base: _values_of(base, own, batch, _Distribution(policy, places), compared, head) for base, own in bases.items()}


class _Distribution(NamedTuple):
    """Log-probabilities, [token, vocab], of the response tokens at `places`, ascending."""

    log_probs: Tensor
    places: Tensor

    def at(self, places: Tensor) -> LogProbs:
        """Of some of the tokens."""
        return self.log_probs if len(places) == len(self.places) else self.log_probs[torch.searchsorted(self.places, places)]


def _values_of(base: str, names: Collection[TensorName], batch: Batch, own: _Distribution, compared: _Compared, head: Head) -> Tensor:
    places = _places(names, batch)

    def still(states: HiddenStates | None, where: Tensor) -> LogProbs:
        if states is None:
            raise ValueError(f"{base} was asked for without the reference's hidden states")
        with torch.no_grad():
            return log_probs(states[where], head)

    readings: Mapping[str, Callable[[], Tensor]] = {
        "policy": lambda: own.at(places),
        "labels": lambda: batch.rows.labels[places],
        "corrupt": lambda: still(compared.own, corrupt_tokens(batch)[places]),
        "reference": lambda: still(compared.reference, places),
    }
    with _recording(names):
        values = FUNCTIONS[base](*(readings[reading]() for reading in _readings(base)))
        return values.new_zeros(len(batch.rows.labels)).index_put((places,), values)


def _places(names: Collection[TensorName], batch: Batch) -> Int[Tensor, " token"]:
    return tokens_of_views(batch, {name.view for name in names}).nonzero().squeeze(-1)


def _recording(names: Collection[TensorName]) -> AbstractContextManager[object]:
    """What only detached tensors ask for records no gradient."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and any(name.model == "policy" for name in names))


@cache
def _readings(base: str) -> tuple[str, ...]:
    return tuple(inspect.signature(FUNCTIONS[base]).parameters)


def corrupt_tokens(batch: Batch) -> Int[Tensor, " response_token"]:
    """For every response token of a clean view the place of the same token on the corrupted image; -1 for others."""
    lengths = answer_lengths(batch)
    starts = lengths.cumsum(0) - lengths
    partner = torch.full_like(lengths, -1)
    for view in CLEAN_VIEWS:
        if {view, corrupt_view(view)} <= batch.answers.keys():
            clean, corrupt = batch.answers[view], batch.answers[corrupt_view(view)]
            both = (clean >= 0) & (corrupt >= 0)
            partner[clean[both]] = corrupt[both]
    answer = batch.rows.answer_index
    return torch.where(partner[answer] >= 0, starts[partner[answer].clamp(min=0)] + places_within(answer, starts), -1)


def _added(parts: Collection[Mapping[str, Tensor]], bases: Iterable[str], like: HiddenStates) -> dict[str, Tensor]:
    """The values of several passes over different views as one; each is 0 where the others are not."""
    zeros = like.new_zeros(len(like), dtype=like.dtype if like.dtype == torch.float64 else torch.float32)
    return {base: sum((part[base] for part in parts if base in part), start=zeros) for base in sorted(bases)}
