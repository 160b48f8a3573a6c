"""The nouns every layer shares: views, the grammar of tensor names, examples, questions and batches."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

PerExample = Float[Tensor, " example"]
PerToken = Float[Tensor, "example token"]

# --- the grammar of objective parameters: <model>_<view>_<reduction><base> ------------------------------------------

MODELS = ("policy", "detached_policy", "reference")
VIEWS = ("chosen", "rejected", "unmatched", "chosen_corrupt", "rejected_corrupt")
REDUCTIONS = ("", "mean_", "token_")
ANSWERED_VIEWS = tuple(view for view in VIEWS if view != "unmatched")
CLEAN_VIEWS = ("chosen", "rejected")  # on the example's own image; `<view>_corrupt` is the same answer on the corrupted one


def corrupt_view(view: str) -> str:
    """The view of the same answer on the corrupted image."""
    return f"{view}_corrupt"


CORRUPT_VIEWS = tuple(map(corrupt_view, CLEAN_VIEWS))


@dataclass(frozen=True)
class Base:
    """One per-token quantity: which models and views may be combined with it, and what it means.

    Args:
        models: model words the name may start with.
        views: views it is defined for.
        meaning: one line, nats per response token.
        reads_corrupt: it also reads the same model's distribution on the view's corrupted image, without gradient.
        reads_reference: it also reads the reference's distribution on the same view.
    """

    models: tuple[str, ...]
    views: tuple[str, ...]
    meaning: str
    reads_corrupt: bool = False
    reads_reference: bool = False


POLICY_MODELS = ("policy", "detached_policy")
BASES: Mapping[str, Base] = {
    "logps": Base(MODELS, VIEWS, "log-probability of the label"),
    "collision_logps": Base(MODELS, ANSWERED_VIEWS, "log of the sum over the vocabulary of the squared probability"),
    "top_wrong_logps": Base(MODELS, ANSWERED_VIEWS, "log-probability of the likeliest token that is not the label"),
    "hallucinated_logps": Base(
        MODELS,
        CLEAN_VIEWS,
        "log-probability, true image, of the token that is likeliest under the corrupted image",
        reads_corrupt=True,
    ),
    "image_kl": Base(
        POLICY_MODELS, CLEAN_VIEWS, "KL divergence from the true image's distribution to the corrupted one's", reads_corrupt=True
    ),
    "forward_kl": Base(
        POLICY_MODELS, ANSWERED_VIEWS, "KL divergence from the reference's distribution to the policy's", reads_reference=True
    ),
}

FACTS: Mapping[str, str] = {
    "pair_weight": "weight of the pair in its record; a missing one is an error, never 1",
    "chosen_lengths": "response tokens of the chosen answer, end-of-sequence included",
    "rejected_lengths": "response tokens of the rejected answer, end-of-sequence included",
    "chosen_present": "1 where the example has a chosen answer; asking for it accepts examples without one",
    "rejected_present": "1 where the example has a rejected answer; asking for it accepts examples without one",
    "chosen_changed_mask": "1 on response tokens of the chosen answer that the rejected one does not have (matches of at least 3 tokens)",
    "rejected_changed_mask": "the same on the rejected answer",
    "uniform_draw": "a number in (0, 1) from (seed, step, example id), the same on every rank",
}


TOKEN_FACTS = frozenset({"chosen_changed_mask", "rejected_changed_mask"})  # [example, token]; the others are [example]


class TensorName(NamedTuple):
    """A parsed parameter name, e.g. `policy_chosen_mean_logps` is (policy, chosen, mean_, logps)."""

    model: str
    view: str
    reduction: str
    base: str

    def __str__(self) -> str:
        return f"{self.model}_{self.view}_{self.reduction}{self.base}"


def tensor_names() -> Mapping[str, TensorName]:
    """Every legal tensor name of the grammar with its parts."""
    names = [
        TensorName(model, view, reduction, base_name)
        for base_name, base in BASES.items()
        for model in base.models
        for view in base.views
        for reduction in REDUCTIONS
    ]
    return {str(name): name for name in names}


TENSOR_NAMES = tensor_names()


def passes_of(name: TensorName) -> frozenset[tuple[str, str]]:
    """Which (model, view) a tensor is computed from, `policy` or `reference`: its own, and what its base reads besides."""
    own = "reference" if name.model == "reference" else "policy"
    base = BASES[name.base]
    also = {(own, corrupt_view(name.view))} if base.reads_corrupt else set[tuple[str, str]]()
    also |= {("reference", name.view)} if base.reads_reference else set()
    return frozenset({(own, name.view)} | also)


def views_scored_by(model: str, names: Iterable[TensorName]) -> frozenset[str]:
    """The views that `policy` or `reference` must score for some tensors, those that a base reads besides included."""
    return frozenset(view for name in names for scoring, view in passes_of(name) if scoring == model)


class ObjectiveOutput(NamedTuple):
    """What an objective returns.

    Args:
        loss: one value per example; the host takes the plain mean over the global batch.
        rewards: by view, the scores the loss itself compares, in its own units.
    """

    loss: PerExample
    rewards: dict[str, PerExample]


# --- records ---------------------------------------------------------------------------------------------------------


@runtime_checkable
class ImageSource(Protocol):
    """One picture, loaded on demand."""

    @property
    def key(self) -> str:
        """A short stable name for messages, never pixels: a relative path or `phantom/test/17`."""
        ...

    def load(self) -> Image.Image:
        """The decoded picture in mode RGB."""
        ...

    def content_hash(self) -> str:
        """Hexadecimal hash of the encoded bytes (files) or of the recipe (procedural pictures)."""
        ...


class Turn(NamedTuple):
    """One turn of a conversation. `role` is `human` or `gpt`; `text` holds no image placeholder."""

    role: str
    text: str


@dataclass(frozen=True)
class Example:
    """One preference record: an image, a conversation that ends with a human turn, and one or two answers to it."""

    id: str
    image: ImageSource
    turns: tuple[Turn, ...]
    chosen: str | None
    rejected: str | None
    rejected_image: ImageSource | None = None
    pair_weight: float | None = None
    error_type: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Question:
    """One evaluation record. `options` lists every admissible answer of a closed question that is not yes/no."""

    id: str
    image: ImageSource
    turns: tuple[Turn, ...]
    answer: str
    answer_type: str  # open, closed
    error_type: str | None = None
    options: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])


# --- batches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trees:
    """How the tokens of packed rows see each other. A row holds trees of segments, one after the other, each depth first.

    Args:
        position_ids: depth of every token in its tree, what its position would be in a sequence of its own; 0 on padding.
        visible_until: token j is seen by token i of its row where `j <= i < visible_until[j]`: by itself and by what follows from it.
        answer_trees: for every answer, the tree it belongs to, counted over all rows.
        span_rows, span_columns: where every image span begins, in row order.
    """

    position_ids: Int[Tensor, "row column"]
    visible_until: Int[Tensor, "row column"]
    answer_trees: Int[Tensor, " answer"]
    span_rows: Int[Tensor, " span"]
    span_columns: Int[Tensor, " span"]


@dataclass(frozen=True)
class Rows:
    """What a backbone scores: token rows, the distinct images they show, and where answers are predicted.

    Args:
        input_ids: right-padded token ids; image spans hold the backbone's image token.
        padding_mask: True on real tokens.
        pictures: distinct images, each once: preprocessed [image, channel, height, width], or features of the frozen vision tower that a
            cache holds [image, patch, feature].
        image_rows: for every image span in row order, the index of its image in `pictures`.
        predictor_rows, predictor_columns: for every response token, the position whose hidden state predicts it.
        labels: for every response token, its id.
        answer_index: for every response token, the answer (0 .. num_answers-1) it belongs to, in ascending order.
        num_answers: number of scored answers.
        trees: None in the plain layout, where every answer has a row of its own and a token sees all tokens before it.
    """

    input_ids: Int[Tensor, "row column"]
    padding_mask: Bool[Tensor, "row column"]
    pictures: Float[Tensor, "image ..."]
    image_rows: Int[Tensor, " span"]
    predictor_rows: Int[Tensor, " response_token"]
    predictor_columns: Int[Tensor, " response_token"]
    labels: Int[Tensor, " response_token"]
    answer_index: Int[Tensor, " response_token"]
    num_answers: int
    trees: Trees | None = None


@dataclass(frozen=True)
class Batch:
    """One micro-batch. Layouts differ in `rows` only.

    Args:
        rows: what the backbone scores.
        answers: by view, for every example the index of its answer in `rows`, or -1 where it has none.
        facts: by name, [example]; masks are [example, token].
        example_ids: ids in order.
        global_positions: position of every example in the global batch.
        error_types: what each pair tests, None where the record does not say.
        answer_keys: for every answer of `rows`, a hash of the sequence it ends: picture, prompt and answer.
    """

    rows: Rows
    answers: Mapping[str, Int[Tensor, " example"]]
    facts: Mapping[str, Tensor]
    example_ids: tuple[str, ...]
    global_positions: Int[Tensor, " example"]
    error_types: tuple[str | None, ...] = ()
    answer_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One item of the training loader: this rank's micro-batches of one optimiser step.

    Args:
        index: optimiser step, from 0.
        batches: micro-batches of this rank.
        num_examples: examples of the global batch, over all ranks.
    """

    index: int
    batches: tuple[Batch, ...]
    num_examples: int
