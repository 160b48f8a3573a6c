"""Preference pairs about phantom pictures: one changed fact, or the starting model's own wrong answer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import count

from PIL import Image

from medvlm_dpo.data.phantom.anatomy import Scene, scene_of
from medvlm_dpo.data.phantom.draws import GENERATOR_VERSION, pick, stream
from medvlm_dpo.data.phantom.own_wrong import OwnWrong
from medvlm_dpo.data.phantom.questions import Asked, questions_of
from medvlm_dpo.data.phantom.render import render
from medvlm_dpo.files import sha256_of_json
from medvlm_dpo.vocab import Example, Turn

PAIRS_VERSION = 2
"""Of what pairs hold beside pictures and texts. A change of weights or of worse pictures needs a new number: it changes results."""
PAIR_WEIGHTS: Mapping[str, float] = {
    "presence": 1.0,
    "laterality": 1.0,
    "findings": 0.9,
    "location": 0.8,
    "count": 0.6,
    "size": 0.6,
    "anatomy": 0.4,
    "modality": 0.3,
}
"""What an error of each type would weigh in a clinic, in (0, 1]. Made up, so that losses with weights have some; nobody measured it."""


@dataclass(frozen=True)
class PhantomImage:
    """Image `index` of `split`, drawn when it is loaded."""

    split: str
    index: int

    @property
    def key(self) -> str:
        """`phantom/<split>/<index>`."""
        return f"phantom/{self.split}/{self.index}"

    @cached_property
    def scene(self) -> Scene:
        """The facts of the picture."""
        return scene_of(self.split, self.index)

    def load(self) -> Image.Image:
        """The picture in mode RGB."""
        return Image.fromarray(render(self.scene)).convert("RGB")

    def content_hash(self) -> str:
        """Hash of the recipe: the pixels are a function of it."""
        return sha256_of_json(["phantom", GENERATOR_VERSION, self.split, self.index])


def single_fact_pair(image: PhantomImage, question: int) -> Example:
    """Chosen is the truth; rejected differs from it in one fact, whose kind is the pair's error type."""
    asked = questions_of(image.scene)[question]
    random = stream(image.split, image.index, "single_fact", question)
    error_type = pick(random, sorted({wrong.error_type for wrong in asked.wrong}))
    rejected = pick(random, [wrong.answer for wrong in asked.wrong if wrong.error_type == error_type])
    return _example(image, question, asked, rejected, error_type, "single_fact")


def own_wrong_pair(record: OwnWrong) -> Example:
    """Chosen is the truth; rejected is what the starting model answered. The error type is the question's."""
    image = PhantomImage(record.split, record.image)
    asked = questions_of(image.scene)[record.question]
    return _example(image, record.question, asked, record.answer, asked.error_type, "own_wrong")


def single_fact_pairs(split: str, taken: frozenset[tuple[int, int]]) -> Iterator[Example]:
    """Single-fact pairs without end, one per picture, leaving out (image, question) places that are taken."""
    index = 0
    while True:
        image = PhantomImage(split, index)
        number = len(questions_of(image.scene))
        free = [question for question in range(number) if (index, question) not in taken]
        if free:
            yield single_fact_pair(image, pick(stream(split, index, "which question"), free))
        index += 1


def facts_of(image: PhantomImage) -> dict[str, object]:
    """What goes into the `extra` of an example or question: lesion boxes (left, top, right, bottom) and the main facts."""
    scene = image.scene
    boxes = [list(lesion.box) for lesion in scene.lesions]
    return {"lesion_boxes": boxes, "modality": scene.modality, "region": scene.region}


def similar_image(image: PhantomImage) -> PhantomImage:
    """Another picture of the split with the same modality and region, as a search for similar pictures might return: the next one."""
    wanted = _kind(image.split, image.index)
    return PhantomImage(image.split, next(index for index in count(image.index + 1) if _kind(image.split, index) == wanted))


@cache
def _kind(split: str, index: int) -> tuple[str, str]:
    scene = scene_of(split, index)
    return scene.modality, scene.region


def _example(image: PhantomImage, question: int, asked: Asked, rejected: str, error_type: str, kind: str) -> Example:
    return Example(
        id=f"{image.key}/{question}/{kind}",
        image=image,
        turns=(Turn("human", asked.text),),
        chosen=asked.answer,
        rejected=rejected,
        rejected_image=similar_image(image),
        pair_weight=PAIR_WEIGHTS[error_type],
        error_type=error_type,
        extra={**facts_of(image), "kind": kind, "question": question},
    )


def flipped(pairs: Sequence[Example], fraction: float) -> tuple[Example, ...]:
    """The same pairs with the two answers of some swapped; a pair's id decides, so a larger fraction swaps those of a smaller one too.

    Args:
        pairs: preference pairs.
        fraction: expected share of swapped pairs, from 0 to 1.
    """
    return tuple(replace(pair, chosen=pair.rejected, rejected=pair.chosen) if _flip_draw(pair.id) < fraction else pair for pair in pairs)


def _flip_draw(pair_id: str) -> float:
    return stream("flip", pair_id).random()
