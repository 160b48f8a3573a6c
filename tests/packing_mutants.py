"""Deliberate mistakes in packed rows, in the chunk loop and in which answers carry gradient, by what is wrong: each must be noticed."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from medvlm_dpo import chunks, scoring
from medvlm_dpo.chunks import HiddenStates, Wanted, _Gradient, _Loop
from medvlm_dpo.data.segments import PackedLayout
from medvlm_dpo.vocab import Batch, Rows, Trees

# --- wrong rows --------------------------------------------------------------------------------------------------------


def _trees(rows: Rows) -> Trees:
    assert rows.trees is not None
    return rows.trees


def _columns(rows: Rows) -> Tensor:
    return torch.arange(rows.input_ids.shape[1]).expand_as(rows.input_ids)


def _with_trees(rows: Rows, **changes: Tensor) -> Rows:
    """Changed where there is no padding."""
    trees = _trees(rows)
    kept = {name: torch.where(rows.padding_mask, new, getattr(trees, name)) for name, new in changes.items()}
    return replace(rows, trees=replace(trees, **kept))


def _tree_starts(rows: Rows) -> Tensor:
    """For every token the column where its tree begins."""
    return torch.where(_trees(rows).position_ids == 0, _columns(rows), 0).cummax(1).values


def _tree_ends(rows: Rows) -> Tensor:
    """For every token the column after its tree."""
    starts = _tree_starts(rows)
    same = (starts.unsqueeze(1) == starts.unsqueeze(2)) & rows.padding_mask.unsqueeze(1)
    return (same * (_columns(rows).unsqueeze(1) + 1)).amax(-1)


def positions_go_on_after_the_first_branch(rows: Rows) -> Rows:
    return _with_trees(rows, position_ids=_columns(rows) - _tree_starts(rows))


def positions_go_on_from_tree_to_tree(rows: Rows) -> Rows:
    return _with_trees(rows, position_ids=_trees(rows).position_ids + _tree_starts(rows))


def positions_begin_at_one(rows: Rows) -> Rows:
    return _with_trees(rows, position_ids=_trees(rows).position_ids + 1)


def positions_begin_anew_at_zero_in_branches(rows: Rows) -> Rows:
    positions = _trees(rows).position_ids.clone()
    for row, column in _branch_starts(rows):
        end = int(_trees(rows).visible_until[row, column])
        positions[row, column:end] -= int(positions[row, column])
    return _with_trees(rows, position_ids=positions)


def _branch_starts(rows: Rows) -> list[tuple[int, int]]:
    positions = _trees(rows).position_ids
    goes_on = torch.ones_like(rows.padding_mask)
    goes_on[:, 1:] = positions[:, 1:] == positions[:, :-1] + 1
    return [(row, column) for row, column in ((~goes_on) & rows.padding_mask & (positions > 0)).nonzero().tolist()]


def branches_see_each_other(rows: Rows) -> Rows:
    return _with_trees(rows, visible_until=_tree_ends(rows))


def trees_see_each_other(rows: Rows) -> Rows:
    trees = _trees(rows)
    seen_by_all = trees.visible_until == _tree_ends(rows)  # the beginning of a tree, which the trees after it now see too
    return _with_trees(rows, visible_until=trees.visible_until.masked_fill(seen_by_all, rows.input_ids.shape[1]))


def later_branches_do_not_see_the_prefix(rows: Rows) -> Rows:
    until = _trees(rows).visible_until.clone()
    for row, column in _branch_starts(rows):
        until[row, :column] = until[row, :column].clamp(max=column)
    return _with_trees(rows, visible_until=until)


def tokens_are_seen_one_too_long(rows: Rows) -> Rows:
    return _with_trees(rows, visible_until=_trees(rows).visible_until + 1)


def tokens_are_seen_one_too_short(rows: Rows) -> Rows:
    return _with_trees(rows, visible_until=_trees(rows).visible_until - 1)


def two_answers_are_predicted_from_each_others_branch(rows: Rows) -> Rows:
    """Two of equal length in one tree."""
    columns, trees = rows.predictor_columns.clone(), _trees(rows).answer_trees
    places = [(rows.answer_index == answer).nonzero().squeeze(-1) for answer in range(rows.num_answers)]
    for first, second in combinations(range(rows.num_answers), 2):
        own, other = places[first], places[second]
        if trees[first] == trees[second] and len(own) == len(other) and not torch.equal(columns[own], columns[other]):
            columns[own], columns[other] = columns[other].clone(), columns[own].clone()
            return replace(rows, predictor_columns=columns)
    raise ValueError("no two answers of equal length stand in one tree")


def answers_are_predicted_by_their_own_token(rows: Rows) -> Rows:
    return replace(rows, predictor_columns=(rows.predictor_columns + 1).clamp(max=rows.input_ids.shape[1] - 1))


def answers_are_predicted_one_token_early(rows: Rows) -> Rows:
    return replace(rows, predictor_columns=(rows.predictor_columns - 1).clamp(min=0))


def pictures_are_mixed_up(rows: Rows) -> Rows:
    return replace(rows, image_rows=rows.image_rows.roll(1))


def a_token_is_another(rows: Rows) -> Rows:
    ids = rows.input_ids.clone()
    ids[rows.predictor_rows[-1], rows.predictor_columns[-1]] += 1
    return replace(rows, input_ids=ids)


WRONG_ROWS: tuple[Callable[[Rows], Rows], ...] = (
    positions_go_on_after_the_first_branch,
    positions_go_on_from_tree_to_tree,
    positions_begin_at_one,
    positions_begin_anew_at_zero_in_branches,
    branches_see_each_other,
    trees_see_each_other,
    later_branches_do_not_see_the_prefix,
    tokens_are_seen_one_too_long,
    tokens_are_seen_one_too_short,
    two_answers_are_predicted_from_each_others_branch,
    answers_are_predicted_by_their_own_token,
    answers_are_predicted_one_token_early,
    pictures_are_mixed_up,
    a_token_is_another,
)
# Rotary positions know only differences: a shift of a whole tree changes no value, so the law of rows alone can notice it.
SAME_VALUES = (positions_go_on_from_tree_to_tree, positions_begin_at_one)


def pack_wrongly(patch: pytest.MonkeyPatch, mistake: Callable[[Rows], Rows]) -> None:
    """Packed rows come out with a mistake."""
    own = PackedLayout.__call__
    patch.setattr(PackedLayout, "__call__", lambda *arguments: mistake(own(*arguments)))


# --- wrong values ------------------------------------------------------------------------------------------------------


def _with_gradients(patch: pytest.MonkeyPatch, change: Callable[[list[_Gradient]], list[_Gradient]]) -> None:
    own = _Loop.run

    def run(loop: _Loop, hidden: Tensor, *, with_gradient: bool) -> Any:
        values, gradients = own(loop, hidden, with_gradient=with_gradient)
        return values, {base: change(parts) for base, parts in gradients.items()}

    patch.setattr(chunks._Loop, "run", run)


def gradient_of_a_token_is_dropped(patch: pytest.MonkeyPatch) -> None:
    _with_gradients(patch, lambda parts: [_Gradient(tokens[1:], rows[1:]) for tokens, rows in parts])


def gradient_of_a_token_counts_twice(patch: pytest.MonkeyPatch) -> None:
    _with_gradients(patch, lambda parts: parts + [_Gradient(tokens[:1], rows[:1]) for tokens, rows in parts[-1:]])


def gradients_go_to_the_next_token(patch: pytest.MonkeyPatch) -> None:
    _with_gradients(patch, lambda parts: [_Gradient(tokens.roll(1), rows) for tokens, rows in parts])


def tokens_with_and_without_gradient_are_mixed_up(patch: pytest.MonkeyPatch) -> None:
    own = scoring._wanted

    def wanted(batch: Batch, names: Any) -> Wanted:
        tokens, live = own(batch, names)
        return Wanted(tokens, tokens & ~live)

    patch.setattr(scoring, "_wanted", wanted)


def answers_without_gradient_stand_at_each_others_places(patch: pytest.MonkeyPatch) -> None:
    own = scoring._hidden_states

    def hidden_states(backbone: Any, rows: Rows, live: Tensor, idle: Tensor) -> HiddenStates:
        hidden, tokens = own(backbone, rows, live, idle), idle[rows.answer_index].nonzero().squeeze(-1)
        return hidden.index_put((tokens,), hidden[tokens].roll(1, 0))

    patch.setattr(scoring, "_hidden_states", hidden_states)


WRONG_VALUES: Mapping[Callable[[pytest.MonkeyPatch], None], str] = {  # with a loss that asks for what is wrong
    gradient_of_a_token_is_dropped: "dpo",
    gradient_of_a_token_counts_twice: "dpo",
    gradients_go_to_the_next_token: "dpo",
    tokens_with_and_without_gradient_are_mixed_up: "perception",
    answers_without_gradient_stand_at_each_others_places: "perception",
}
