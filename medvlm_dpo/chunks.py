"""Per-token values from hidden states, a chunk of tokens at a time: a whole sequence's distributions never exist at once.

A value depends on one token's hidden state alone, so its gradient is one row per token. It is formed while the chunk's distributions are
at hand, and only scaled in the backward pass: nothing of the size of the vocabulary is kept, and no head product is made twice.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from medvlm_dpo.logps import FUNCTIONS, READINGS, Head, LogProbs, TokenValues, log_probs

HiddenStates = Float[Tensor, "response_token hidden"]
CHUNK_ENTRIES = 2**24  # of one distribution, 64 MiB in float32: 512 tokens of a vocabulary of 32k, 110 of one of 152k


class Wanted(NamedTuple):
    """Which tokens a base is asked for, and which of these carry gradient."""

    tokens: Bool[Tensor, " response_token"]
    live: Bool[Tensor, " response_token"]


class Compared(NamedTuple):
    """What a distribution is compared with: `corrupt` and `reference` hidden states, a row for each response token; no gradient."""

    corrupt: HiddenStates | None = None
    reference: HiddenStates | None = None


def token_values(
    hidden: HiddenStates,
    labels: Int[Tensor, " response_token"],
    wanted: Mapping[str, Wanted],
    head: Head,
    *,
    compared: Compared,
    chunk_entries: int = CHUNK_ENTRIES,
) -> TokenValues:
    """Every base over the tokens that ask for it, [response_token], 0 elsewhere; in float32 or better.

    Args:
        hidden: of the scoring model, with gradient where there is one.
        labels: ids.
        wanted: by base.
        head: hidden states to logits.
        compared: hidden states of other distributions, for the bases that read one.
        chunk_entries: tokens x vocabulary of one chunk's distribution; decides memory, not values.

    Raises:
        ValueError: a base reads a distribution that `compared` lacks.
    """
    loop = _Loop(labels, wanted, head, compared, chunk_entries)
    names = sorted(wanted)
    if torch.is_grad_enabled() and hidden.requires_grad and any(bool(own.live.any()) for own in wanted.values()):
        return dict(zip(names, _Values.apply(hidden, loop, names), strict=True))
    values, _ = loop.run(hidden.detach(), with_gradient=False)
    return {name: values[name] for name in names}


class _Gradient(NamedTuple):
    """Derivatives of one base's values: for each of some tokens one row, with respect to its hidden state."""

    tokens: Tensor
    rows: Tensor


class _Loop(NamedTuple):
    labels: Tensor
    wanted: Mapping[str, Wanted]
    head: Head
    compared: Compared
    chunk_entries: int

    def run(self, hidden: Tensor, *, with_gradient: bool) -> tuple[dict[str, Tensor], dict[str, list[_Gradient]]]:
        values = {base: torch.zeros(len(hidden), dtype=_value_dtype(hidden), device=hidden.device) for base in self.wanted}
        gradients: dict[str, list[_Gradient]] = {base: [] for base in self.wanted}
        asked = torch.stack([own.tokens for own in self.wanted.values()]).any(0).nonzero().squeeze(-1)
        for tokens in asked.split(self._chunk_size(hidden)):
            self._chunk(hidden, tokens, values, gradients, with_gradient=with_gradient)
        return values, gradients

    def _chunk_size(self, hidden: Tensor) -> int:
        with torch.no_grad():
            return max(1, self.chunk_entries // self.head(hidden[:1]).shape[-1])

    def _chunk(
        self,
        hidden: Tensor,
        tokens: Tensor,
        values: dict[str, Tensor],
        gradients: dict[str, list[_Gradient]],
        *,
        with_gradient: bool,
    ) -> None:
        live = with_gradient and any(bool(own.live[tokens].any()) for own in self.wanted.values())
        with torch.set_grad_enabled(live):
            states = hidden[tokens].detach().requires_grad_(live)
            own = log_probs(states, self.head)
            for base, asked in self.wanted.items():
                here = asked.tokens[tokens].nonzero().squeeze(-1)
                if not len(here):
                    continue
                found = FUNCTIONS[base](*(read() for read in self._readings(base, own, tokens, here)))
                values[base][tokens[here]] = found.detach()
                carrying = asked.live[tokens[here]]
                if live and bool(carrying.any()):
                    (rows,) = torch.autograd.grad(found[carrying].sum(), states, retain_graph=True)
                    gradients[base].append(_Gradient(tokens[here[carrying]], rows[here[carrying]]))

    def _readings(self, base: str, own: LogProbs, tokens: Tensor, here: Tensor) -> Sequence[Callable[[], Tensor]]:
        """What a base's function reads, in the order of its parameters; its tokens are `here` among the chunk's `tokens`."""
        places = tokens[here]

        def still(states: Tensor | None, which: str) -> LogProbs:
            if states is None:
                raise ValueError(f"{base} was asked for without the {which} hidden states")
            with torch.no_grad():
                return log_probs(states[places], self.head)

        sources: Mapping[str, Callable[[], Tensor]] = {
            "policy": lambda: own if len(here) == len(tokens) else own[here],
            "labels": lambda: self.labels[places],
            "corrupt": lambda: still(self.compared.corrupt, "corrupted image's"),
            "reference": lambda: still(self.compared.reference, "reference's"),
        }
        return [sources[name] for name in READINGS[base]]


class _Values(torch.autograd.Function):
    """The loop as one step of the graph."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loop: _Loop, names: Sequence[str]) -> tuple[Tensor, ...]:
        values, gradients = loop.run(hidden.detach(), with_gradient=True)
        ctx.names, ctx.gradients, ctx.shape, ctx.like = names, gradients, hidden.shape, hidden.new_empty(0)
        return tuple(values[name] for name in names)

    @staticmethod
    @once_differentiable  # the rows are numbers by now: a second derivative would be wrong, so it is refused
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator's type
        """Scales the rows formed in the loop and adds them up."""
        total = ctx.like.new_zeros(ctx.shape)
        for name, grad in zip(ctx.names, grads, strict=True):
            for tokens, rows in ctx.gradients[name]:
                total.index_add_(0, tokens, (grad[tokens].unsqueeze(-1) * rows).to(total.dtype))
        return total, None, None


def _value_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32
