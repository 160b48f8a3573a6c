"""Rows with what some answers need and nothing else, for a pass that asks for no others."""

from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from medvlm_dpo.vocab import Rows, Trees


def rows_of_answers(rows: Rows, wanted: Bool[Tensor, " answer"]) -> Rows:
    """The same rows without what no wanted answer needs.

    Answers keep their order and are counted anew; pictures stay as they are, so that their features can be used again.
    """
    if bool(wanted.all()):
        return rows
    tokens = wanted[rows.answer_index]
    numbers = wanted.cumsum(0) - 1
    kept = replace(
        rows,
        labels=rows.labels[tokens],
        answer_index=numbers[rows.answer_index[tokens]],
        predictor_rows=rows.predictor_rows[tokens],
        predictor_columns=rows.predictor_columns[tokens],
        num_answers=int(wanted.sum()),
    )
    return _rows_kept(kept, wanted) if rows.trees is None else _pruned(kept, rows.trees, wanted)


def _rows_kept(kept: Rows, wanted: Bool[Tensor, " answer"]) -> Rows:
    return replace(
        kept,
        input_ids=kept.input_ids[wanted],
        padding_mask=kept.padding_mask[wanted],
        image_rows=kept.image_rows[wanted],
        predictor_rows=kept.answer_index,
    )


def _pruned(kept: Rows, trees: Trees, wanted: Bool[Tensor, " answer"]) -> Rows:
    """Without the tokens that no wanted answer's last predictor sees, the others moved together."""
    lasts = torch.bincount(kept.answer_index).cumsum(0) - 1
    rows, columns = kept.predictor_rows[lasts], kept.predictor_columns[lasts].unsqueeze(1)
    every = torch.arange(kept.input_ids.shape[1], device=rows.device)
    seen = (every <= columns) & (columns < trees.visible_until[rows])
    needed = torch.zeros_like(kept.input_ids).index_add(0, rows, seen.long()) > 0
    alive = needed.any(1)
    before = needed.cumsum(1)  # needed tokens up to and with each column
    width = int(before[:, -1].max())
    order = needed[alive].long().argsort(dim=1, descending=True, stable=True)[:, :width]
    padding_mask = needed[alive].gather(1, order)
    until = before.gather(1, trees.visible_until - 1)[alive].gather(1, order)
    spans = needed[trees.span_rows, trees.span_columns]
    row_numbers = alive.cumsum(0) - 1
    return replace(
        kept,
        input_ids=kept.input_ids[alive].gather(1, order) * padding_mask,
        padding_mask=padding_mask,
        image_rows=kept.image_rows[spans],
        predictor_rows=row_numbers[kept.predictor_rows],
        predictor_columns=before[kept.predictor_rows, kept.predictor_columns] - 1,
        trees=Trees(
            position_ids=trees.position_ids[alive].gather(1, order) * padding_mask,
            visible_until=torch.where(padding_mask, until, every[:width] + 1),
            answer_trees=trees.answer_trees[wanted],
            span_rows=row_numbers[trees.span_rows[spans]],
            span_columns=before[trees.span_rows[spans], trees.span_columns[spans]] - 1,
        ),
    )
