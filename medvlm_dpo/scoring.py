"""Forward passes of one model: which answers it scores, which of them with gradient, and the per-token values that come out."""

from collections.abc import Collection

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.chunks import Compared, HiddenStates, Wanted, token_values
from medvlm_dpo.data.collate import answers_of_views
from medvlm_dpo.data.pruning import rows_of_answers
from medvlm_dpo.logps import TokenValues, answer_lengths, places_within
from medvlm_dpo.vocab import BASES, CLEAN_VIEWS, Batch, Rows, TensorName, corrupt_view, views_scored_by

HIDDEN = "hidden"  # beside the bases: the reference's hidden states, where a base of the policy reads them
REFERENCE = "reference"
Answers = Bool[Tensor, " answer"]


def policy_values(
    backbone: AbstractBackbone, batch: Batch, names: Collection[TensorName], reference: TokenValues | None = None
) -> TokenValues:
    """Per-token values of the model as it is now, by base; [response_token], 0 where nobody asks.

    Only trees with an answer that a `policy_` tensor asks for run with gradient; in those the other answers ride along (KTO's unmatched
    answer on the same picture and question). The rest, such as a blank picture, needs no backward pass.

    Args:
        backbone: the policy.
        batch: one micro-batch.
        names: what is asked for; the reference's tensors among them are left out.
        reference: what the reference gave, with its hidden states where `forward_kl` is asked for.
    """
    own = [name for name in names if name.model != REFERENCE]
    if not own:
        return {}
    asked = answers_of_views(batch, views_scored_by("policy", own))
    carrying = answers_of_views(batch, {name.view for name in own if name.model == "policy" and torch.is_grad_enabled()})
    live = asked & _same_tree(batch.rows, carrying)
    hidden = _hidden_states(backbone, batch.rows, live, asked & ~live)
    return _values(backbone, batch, own, hidden, (reference or {}).get(HIDDEN))


def frozen_values(backbone: AbstractBackbone, batch: Batch, names: Collection[TensorName]) -> TokenValues:
    """Per-token values of the reference, whose weights are in place now: its own tensors, and its hidden states where a base reads them."""
    own = [name for name in names if name.model == REFERENCE]
    with torch.no_grad():
        asked = answers_of_views(batch, views_scored_by(REFERENCE, names))
        hidden = _hidden_states(backbone, batch.rows, torch.zeros_like(asked), asked)
        values = _values(backbone, batch, own, hidden, None) if own else {}
    return {**values, HIDDEN: hidden} if any(BASES[name.base].reads_reference for name in names) else values


def _same_tree(rows: Rows, answers: Answers) -> Answers:
    """All answers of the trees that some answers belong to."""
    return answers if rows.trees is None else torch.isin(rows.trees.answer_trees, rows.trees.answer_trees[answers])


def _hidden_states(backbone: AbstractBackbone, rows: Rows, live: Answers, idle: Answers) -> HiddenStates:
    """Last hidden states at the positions that predict response tokens, 0 at those of other answers; at most one pass of each kind."""
    parts: list[tuple[Tensor, HiddenStates]] = []
    for answers, recorded in ((live, torch.is_grad_enabled()), (idle, False)):
        if bool(answers.any()):
            with torch.set_grad_enabled(recorded):
                hidden = backbone.hidden_states(rows_of_answers(rows, answers))
            parts.append((answers[rows.answer_index].nonzero().squeeze(-1), hidden))
    if len(parts) == 1 and len(parts[0][0]) == len(rows.labels):
        return parts[0][1]
    whole = parts[0][1].new_zeros((len(rows.labels), parts[0][1].shape[-1]))
    for tokens, hidden in parts:
        whole = whole.index_put((tokens,), hidden)
    return whole


def _values(
    backbone: AbstractBackbone, batch: Batch, names: Collection[TensorName], hidden: HiddenStates, reference: HiddenStates | None
) -> TokenValues:
    bases = {name.base for name in names}
    wanted = {base: _wanted(batch, [name for name in names if name.base == base]) for base in bases}
    corrupt = None
    if any(BASES[base].reads_corrupt for base in bases):
        partners = corrupt_tokens(batch)  # -1 where there is none, and there no base asks
        corrupt = hidden.detach()[partners.clamp(min=0)]
    return token_values(hidden, batch.rows.labels, wanted, backbone.head, compared=Compared(corrupt, reference))


def _wanted(batch: Batch, names: Collection[TensorName]) -> Wanted:
    tokens, live = (
        answers_of_views(batch, {name.view for name in asking})[batch.rows.answer_index]
        for asking in (names, [name for name in names if name.model == "policy"])
    )
    return Wanted(tokens, live)


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
