"""Sequences to score -> token rows: one row a sequence (plain), or trees that hold what sequences share once (packed).

A tree is the radix tree of the sequences that show one picture: question and picture stand in it once for both answers, the
picture once for several questions, and so do words with which two answers begin. A decoder's state at a token depends on the
tokens before it alone, so a shared token has the same state, and receives the sum of the gradients.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from medvlm_dpo.files import sha256_of_bytes
from medvlm_dpo.vocab import ImageSource, Rows, Trees

Pictures = Callable[[Sequence[ImageSource]], Tensor]  # distinct pictures, as one tensor with a line for each


class Scored(NamedTuple):
    """One sequence to score: the ids of prompt and answer, and the picture the prompt shows."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    image: ImageSource

    @property
    def read(self) -> tuple[int, ...]:
        """What the model reads: the last token of the answer is predicted but predicts nothing."""
        return self.prompt + self.answer[:-1]

    @property
    def key(self) -> str:
        """Hash of what the answer's log-probabilities depend on besides the model: picture, prompt and answer."""
        ids = array("q", (len(self.prompt), *self.prompt, *self.answer)).tobytes()
        return sha256_of_bytes(self.image.content_hash().encode() + b"/" + ids)


class Layout(Protocol):
    """A way of laying sequences out in rows."""

    name: ClassVar[str]

    def __call__(self, sequences: Sequence[Scored], pictures: Pictures) -> Rows:
        """Rows whose answers are those of the sequences, in order."""
        ...

    def num_tokens(self, sequences: Sequence[Scored]) -> int:
        """Tokens the model reads for these sequences, padding left out."""
        ...


# --- plain: one row a sequence ---------------------------------------------------------------------------------------


class PlainLayout:
    """One row a sequence: what the packed layout is compared with, and what remains where a model does not allow packing."""

    name: ClassVar[str] = "plain"

    def __call__(self, sequences: Sequence[Scored], pictures: Pictures) -> Rows:
        """Rows in the order of the sequences."""
        width = max(len(prompt) + len(answer) for prompt, answer, _ in sequences)
        input_ids = torch.zeros((len(sequences), width), dtype=torch.long)
        padding_mask = torch.zeros((len(sequences), width), dtype=torch.bool)
        predictor_columns: list[int] = []
        for row, (prompt, answer, _) in enumerate(sequences):
            length = len(prompt) + len(answer)
            input_ids[row, :length] = torch.tensor(prompt + answer)
            padding_mask[row, :length] = True
            predictor_columns += range(len(prompt) - 1, length - 1)  # the token before predicts
        answer_index = _answer_index(sequences)
        shown, image_rows = _distinct([image for _, _, image in sequences], pictures)
        return Rows(
            input_ids=input_ids,
            padding_mask=padding_mask,
            pictures=shown,
            image_rows=image_rows,
            predictor_rows=answer_index,  # one row per answer in this layout
            predictor_columns=torch.tensor(predictor_columns),
            labels=_labels(sequences),
            answer_index=answer_index,
            num_answers=len(sequences),
        )

    def num_tokens(self, sequences: Sequence[Scored]) -> int:
        """Tokens of all sequences."""
        return sum(len(prompt) + len(answer) for prompt, answer, _ in sequences)


# --- packed: trees -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackedLayout:
    """Trees of segments, several a row.

    Args:
        image_token_id: id that marks image positions.
        row_tokens: a row takes trees up to this many tokens, and at least the longest tree. 0: as long as the longest tree, which is best
            where attention costs the square of a row; large where a kernel skips what no token sees.
    """

    name: ClassVar[str] = "packed"

    image_token_id: int
    row_tokens: int = 0

    def __call__(self, sequences: Sequence[Scored], pictures: Pictures) -> Rows:
        """Rows of trees; sequences of one picture share a tree."""
        trees = [_grown(sequences, members, self.image_token_id) for members in _by_picture(sequences)]
        return _laid_out(trees, _shelves([len(tree.tokens) for tree in trees], self.row_tokens), sequences, pictures)

    def num_tokens(self, sequences: Sequence[Scored]) -> int:
        """Tokens of all trees."""
        return sum(_size(sorted(sequences[index].read for index in members)) for members in _by_picture(sequences))


@dataclass
class _Tree:
    """One tree, depth first."""

    image: ImageSource
    tokens: list[int] = field(default_factory=list[int])
    positions: list[int] = field(default_factory=list[int])
    visible_until: list[int] = field(default_factory=list[int])
    span_columns: list[int] = field(default_factory=list[int])
    predictors: dict[int, list[int]] = field(default_factory=dict[int, list[int]])  # columns, by sequence


def _by_picture(sequences: Sequence[Scored]) -> list[list[int]]:
    members: dict[str, list[int]] = {}
    for index, sequence in enumerate(sequences):
        members.setdefault(sequence.image.content_hash(), []).append(index)
    return list(members.values())


def _grown(sequences: Sequence[Scored], members: Sequence[int], image_token_id: int) -> _Tree:
    """The radix tree of some sequences. Sorted, neighbours share the most, and their order is depth first."""
    tree = _Tree(sequences[members[0]].image)
    before: tuple[int, ...] = ()
    path: list[int] = []  # columns of the sequence before
    for index in sorted(members, key=lambda index: sequences[index].read):
        tokens = sequences[index].read
        shared, start = _num_shared(before, tokens), len(tree.tokens)
        for column in path[shared:]:
            tree.visible_until[column] = start
        added = tokens[shared:]
        path = path[:shared] + list(range(start, start + len(added)))
        tree.span_columns += [
            column
            for column, token, previous in zip(path[shared:], added, ((None, *tokens)[shared:]), strict=False)
            if token == image_token_id != previous
        ]
        tree.tokens += added
        tree.positions += range(shared, len(tokens))
        tree.visible_until += [0] * len(added)
        tree.predictors[index] = path[len(sequences[index].prompt) - 1 :]
        before = tokens
    for column in path:
        tree.visible_until[column] = len(tree.tokens)
    return tree


def _num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (own, other) in pairs if own != other), min(len(first), len(second)))


def _size(ordered: Sequence[Sequence[int]]) -> int:
    return sum(len(tokens) - _num_shared(before, tokens) for before, tokens in zip([(), *ordered], ordered, strict=False))


def _shelves(sizes: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Which trees stand in which row: the longest first, each in the first row with room for it."""
    capacity = max(row_tokens, *sizes)
    shelves: list[list[int]] = []
    filled: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        row = next((row for row, used in enumerate(filled) if used + sizes[index] <= capacity), len(shelves))
        if row == len(shelves):
            shelves.append([])
            filled.append(0)
        shelves[row].append(index)
        filled[row] += sizes[index]
    return shelves


def _laid_out(trees: Sequence[_Tree], shelves: Sequence[Sequence[int]], sequences: Sequence[Scored], pictures: Pictures) -> Rows:
    shape = (len(shelves), max(sum(len(trees[index].tokens) for index in shelf) for shelf in shelves))
    input_ids, position_ids = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    padding_mask = torch.zeros(shape, dtype=torch.bool)
    visible_until = torch.arange(1, shape[1] + 1).repeat(shape[0], 1)  # padding sees itself: a softmax over nothing is not a number
    places: dict[int, tuple[int, list[int], int]] = {}  # by sequence: row, columns of its predictors, tree
    spans: list[tuple[int, int, ImageSource]] = []
    for row, shelf in enumerate(shelves):
        start = 0
        for index in shelf:
            tree = trees[index]
            here = (row, slice(start, start + len(tree.tokens)))
            input_ids[here], position_ids[here] = torch.tensor(tree.tokens), torch.tensor(tree.positions)
            visible_until[here] = torch.tensor(tree.visible_until) + start
            padding_mask[here] = True
            places |= {member: (row, [start + column for column in own], index) for member, own in tree.predictors.items()}
            spans += [(row, start + column, tree.image) for column in sorted(tree.span_columns)]
            start += len(tree.tokens)
    shown, image_rows = _distinct([image for _, _, image in spans], pictures)
    ordered = [places[index] for index in range(len(sequences))]
    return Rows(
        input_ids=input_ids,
        padding_mask=padding_mask,
        pictures=shown,
        image_rows=image_rows,
        predictor_rows=torch.tensor([row for row, columns, _ in ordered for _ in columns]),
        predictor_columns=torch.tensor([column for _, columns, _ in ordered for column in columns]),
        labels=_labels(sequences),
        answer_index=_answer_index(sequences),
        num_answers=len(sequences),
        trees=Trees(
            position_ids=position_ids,
            visible_until=visible_until,
            answer_trees=torch.tensor([tree for _, _, tree in ordered]),
            span_rows=torch.tensor([row for row, _, _ in spans], dtype=torch.long),
            span_columns=torch.tensor([column for _, column, _ in spans], dtype=torch.long),
        ),
    )


def _labels(sequences: Sequence[Scored]) -> Tensor:
    return torch.tensor([token for sequence in sequences for token in sequence.answer])


def _answer_index(sequences: Sequence[Scored]) -> Tensor:
    return torch.tensor([index for index, sequence in enumerate(sequences) for _ in sequence.answer])


def _distinct(shown: Sequence[ImageSource], pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Distinct pictures, each once, and for every span the picture it shows."""
    distinct: Mapping[str, ImageSource] = {image.content_hash(): image for image in shown}
    order = {content: index for index, content in enumerate(distinct)}
    return pictures(list(distinct.values())), torch.tensor([order[image.content_hash()] for image in shown])
