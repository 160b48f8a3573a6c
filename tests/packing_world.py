"""Made-up examples that share beginnings in every way, the law that rows obey, and one training step without a trainer."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any, NamedTuple

import torch
import yaml
from core_world import CONF, SETTINGS, collated, picture, to_dtype
from torch import Tensor

from medvlm_dpo.backbones.adapter import LoraSettings
from medvlm_dpo.backbones.llava import LlavaBackbone
from medvlm_dpo.data.changes import changed_tokens
from medvlm_dpo.data.encoding import EncodedExample
from medvlm_dpo.data.phantom.tiny_models import EOS, VOCABULARY_SIZE
from medvlm_dpo.data.segments import Layout, Scored
from medvlm_dpo.module import PreferenceModule
from medvlm_dpo.objectives.terms import Objective
from medvlm_dpo.reference import AbstractReference, MovingReference
from medvlm_dpo.vocab import Batch, ImageSource, Rows, Step

# --- the law of rows ---------------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """What image tokens are: their id, and how many one picture has."""

    token: int
    number: int


def check_rows(rows: Rows, sequences: Sequence[Scored], shown: Shown) -> None:
    """Asserts that every answer's token is predicted from its own sequence: nothing more, nothing less, in order, on its own picture.

    Pictures are known by their value, which is their key as a number.
    """
    patches = _patches(rows, shown)
    expected = [(index, place, token) for index, sequence in enumerate(sequences) for place, token in enumerate(sequence.answer)]
    assert rows.num_answers == len(sequences)
    assert rows.answer_index.tolist() == [index for index, _, _ in expected]
    assert rows.labels.tolist() == [token for _, _, token in expected]
    for (index, place, _), row, column in zip(expected, rows.predictor_rows.tolist(), rows.predictor_columns.tolist(), strict=True):
        sequence, seen = sequences[index], _seen(rows, row, column)
        assert rows.input_ids[row, seen].tolist() == [*sequence.prompt, *sequence.answer[:place]]
        own_picture = [(float(sequence.image.key), patch) for patch in range(shown.number)]
        assert [patches[row, other] for other in seen if (row, other) in patches] == own_picture
        if rows.trees is not None:
            assert rows.trees.position_ids[row, seen].tolist() == list(range(len(seen)))


def check_every_token(rows: Rows) -> None:
    """Asserts that tokens see a whole sequence that ends with themselves, and padding, which holds zeros, sees itself alone."""
    assert rows.trees is not None
    for row, column in rows.padding_mask.nonzero().tolist():
        seen = _seen(rows, row, column)
        assert seen[-1] == column
        assert bool(rows.padding_mask[row, seen].all())
        assert rows.trees.position_ids[row, seen].tolist() == list(range(len(seen)))
    for row, column in (~rows.padding_mask).nonzero().tolist():
        assert _seen(rows, row, column) == [column]
        assert int(rows.input_ids[row, column]) == int(rows.trees.position_ids[row, column]) == 0


def check_spans(rows: Rows, shown: Shown) -> None:
    """Asserts that the listed spans are where pictures begin, in the order in which a model fills them in."""
    assert rows.trees is not None
    begins = [place for place, (_, patch) in _patches(rows, shown).items() if patch == 0]
    assert list(zip(rows.trees.span_rows.tolist(), rows.trees.span_columns.tolist(), strict=True)) == begins
    assert len(begins) == len(rows.image_rows)


def _patches(rows: Rows, shown: Shown) -> dict[tuple[int, int], tuple[float, int]]:
    """For every image position the picture and the patch that a model fills in: row by row, in the order of `image_rows`."""
    positions = (rows.input_ids == shown.token).nonzero().tolist()
    assert len(positions) == shown.number * len(rows.image_rows)
    pictures = [float(rows.pictures[number].mean()) for number in rows.image_rows.tolist()]
    return {(row, column): (pictures[place // shown.number], place % shown.number) for place, (row, column) in enumerate(positions)}


def _seen(rows: Rows, row: int, column: int) -> list[int]:
    if rows.trees is None:
        return list(range(column + 1))
    until = rows.trees.visible_until[row, : column + 1].tolist()
    return [other for other, end in enumerate(until) if column < end]


def distinct_beginnings(sequences: Iterable[Scored]) -> int:
    """How many states a decoder has to compute: one for every distinct beginning of what is read on a picture."""
    return len({(own.image.content_hash(), own.read[:end]) for own in sequences for end in range(1, len(own.read) + 1)})


# --- made-up examples --------------------------------------------------------------------------------------------------


def drawn_examples(random: Random, size: int, backbone: LlavaBackbone, *, absent: bool = False) -> tuple[EncodedExample, ...]:
    """Examples of uneven length with every view, which share pictures, prompts and beginnings of answers at random.

    No chosen answer is another example's, and no rejected one: log-ratios that are equal would be sorted by their rounding.

    Args:
        random: what draws.
        size: number of examples.
        backbone: whose image tokens the prompts hold.
        absent: whether answers may be missing.
    """

    def words(least: int, most: int) -> tuple[int, ...]:
        return tuple(random.randrange(40, VOCABULARY_SIZE) for _ in range(random.randint(least, most)))

    span = (backbone.encoder.image_token_id,) * backbone.encoder.num_image_tokens
    openings = [words(1, 3) for _ in range(random.randint(1, 2))]
    questions = [words(1, 9) for _ in range(random.randint(1, 3))]
    questions += [question + words(1, 4) for question in questions[:1]]  # one prompt begins with another
    stems = [(), words(1, 4)]
    pictures = [picture(number) for number in range(random.randint(1, 3))]
    examples: list[EncodedExample] = []
    for place in range(size):
        own = {view: random.choice(stems) + words(0, 9) + (mark + place, EOS) for view, mark in (("chosen", 8), ("rejected", 24))}
        kept = random.choice([("chosen",), ("rejected",), ("chosen", "rejected")]) if absent and place else tuple(own)
        answers = {view: own[view] for view in kept}
        others = [answer for example in examples for answer in example.answers.values()]
        answers["unmatched"] = random.choice([*others, random.choice(stems) + words(0, 3) + (EOS,)])
        examples.append(
            EncodedExample(
                id=f"e{place}",
                image=random.choice(pictures),
                prompt=random.choice(openings) + span + random.choice(questions),
                answers=answers,
                pair_weight=random.uniform(0.2, 1.0),
                corrupted=picture(100 + random.randrange(2)),
                changed=changed_tokens(answers),
            )
        )
    return tuple(examples)


# --- the built-in models -------------------------------------------------------------------------------------------------

LORA = LoraSettings(rank=4, alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"])


class Outcome(NamedTuple):
    """Metrics and gradient of one step."""

    metrics: Mapping[str, float]
    gradient: Mapping[str, Tensor]

    @property
    def is_flat(self) -> bool:
        """Whether nothing has a gradient, as where a hinge is wide open: then equality says little."""
        return not any(bool(gradient.any()) for gradient in self.gradient.values())


class PackingWorld:
    """A built-in model with its adapter away from the start, and a reference that has moved once.

    Args:
        name: of conf/model.
        dtype: of all weights, and of the norms in float64.
    """

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        node = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
        self.backbone = LlavaBackbone(**{key: value for key, value in node.items() if key != "_target_"})
        self.backbone.load()
        to_dtype(self.backbone, dtype)
        self.backbone.add_adapter(LORA, seed=0)
        self.dtype = dtype
        self._move(seed=1, by=0.05)
        moved = MovingReference(mix=0.6, every_steps=1)
        moved.after_step(self.backbone, 1)
        self._moved = moved.state()
        self._move(seed=2, by=0.05)
        self._picture: Callable[[ImageSource], Tensor] = cache(lambda image: self.backbone.pictures([image]).to(dtype))

    def _move(self, *, seed: int, by: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in self.backbone.trainable().values():
                weight.add_(by * torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.dtype))

    def moved_reference(self) -> MovingReference:
        """A reference that stands between the start and where the policy was a while ago."""
        moved = MovingReference(mix=0.6, every_steps=1)
        moved.restore(self._moved)
        return moved

    def batch(self, examples: Sequence[EncodedExample], views: Iterable[str], layout: Layout) -> Batch:
        """All examples as one micro-batch."""
        return collated(examples, views, lambda images: torch.cat([self._picture(image) for image in images]), layout)

    def step(self, batches: Sequence[Batch], objective: Objective, reference: AbstractReference) -> Outcome:
        """What the module computes in one step up to the optimiser, whose weights stay as they are."""
        for weight in self.backbone.trainable().values():
            weight.grad = None
        module = _Module(self.backbone, objective, reference, replace(SETTINGS, gradient_clip_norm=0.0), num_steps=1)
        module.training_step(Step(0, tuple(batches), sum(len(batch.example_ids) for batch in batches)), 0)
        gradients = {name: weight.grad for name, weight in self.backbone.trainable().items()}
        return Outcome(module.metrics, {name: gradient.clone() for name, gradient in gradients.items() if gradient is not None})


class _Module(PreferenceModule):
    """Trains with the gradient and without a step."""

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:  # noqa: ARG002 - Lightning's signature
        return _Still()

    def manual_backward(self, loss: Tensor, *_: Any, **__: Any) -> None:
        loss.backward()


class _Still:
    param_groups: Collection[dict[str, float]] = ()

    def zero_grad(self, *, set_to_none: bool) -> None:
        """Nothing: every step begins without gradients."""

    def step(self) -> None:
        """Nothing."""


# --- differences -------------------------------------------------------------------------------------------------------

SHARES = ("accuracy", "gain")  # steps from 0 to 1, which rounding decides at a tie


def check_equal(found: Outcome, expected: Outcome, tolerance: float) -> None:
    """Asserts that loss, metrics and gradient of two steps agree."""
    assert found.metrics.keys() == expected.metrics.keys()
    compared = [name for name in expected.metrics if not name.endswith(SHARES)]
    pairs = {name: (found.metrics[name], expected.metrics[name]) for name in compared}
    assert not {name: pair for name, pair in pairs.items() if not math.isclose(*pair, rel_tol=tolerance, abs_tol=tolerance)}
    assert math.isclose(*pairs["train/loss"], rel_tol=tolerance)
    check_gradient(found, expected, tolerance)


def check_gradient(found: Outcome, expected: Outcome, tolerance: float) -> None:
    """Asserts that the gradients agree relative to the norm of the whole."""
    assert found.gradient.keys() == expected.gradient.keys()
    own, other = (torch.cat([gradient.double().flatten() for gradient in part.gradient.values()]) for part in (found, expected))
    assert float((own - other).norm()) <= tolerance * float(other.norm())
