"""What pretraining shows a built-in model: pictures of the split `pretrain`, their facts, questions and answers as ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from medvlm_dpo.data.phantom.anatomy import MODALITIES, REGIONS, SIDES, SIZES, ZONES, Scene, scene_of
from medvlm_dpo.data.phantom.draws import chance, pick, stream
from medvlm_dpo.data.phantom.questions import Asked, every_question
from medvlm_dpo.data.phantom.render import render
from medvlm_dpo.data.phantom.tiny_models import EOS, IMAGE, IMAGE_TOKENS, PAD, Recipe

UNSCORED = -100
PLACES = tuple((side, zone) for side in SIDES for zone in ZONES)
FACT_CLASSES = (*[1 + len(SIZES)] * len(PLACES), len(MODALITIES), len(REGIONS), 3)
"""Number of classes of each fact in `facts_of`: the lesion of each place, modality, region, heart (absent, normal, enlarged)."""


def facts_of(scene: Scene) -> list[int]:
    """The scene as one class per entry of `FACT_CLASSES`; 0 of a place means no lesion there."""
    lesions = {(lesion.side, lesion.zone): 1 + SIZES.index(str(scene.size)) for lesion in scene.lesions}
    heart = 0 if scene.heart_enlarged is None else 1 + int(scene.heart_enlarged)
    return [*(lesions.get(place, 0) for place in PLACES), MODALITIES.index(scene.modality), list(REGIONS).index(scene.region), heart]


def to_pixels(planes: Sequence[UInt8[np.ndarray, "height width"]]) -> Float[Tensor, "image 3 height width"]:
    """Grey pictures as the vision tower wants them, normalised as preprocessor_config.json says."""
    stack = torch.from_numpy(np.stack(planes)).to(torch.float32)
    return ((stack / 255.0 - 0.5) / 0.25).unsqueeze(1).expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class Encoder:
    """Prefixes, questions and answers as ids in one model's format; texts recur, so their ids are kept."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerFast
    known: dict[str, list[int]] = field(default_factory=dict[str, list[int]])

    def prefix(self) -> list[int]:
        """Ids up to the end of the image span."""
        return [*self.recipe.first_ids, *self._ids(self.recipe.before), *[IMAGE] * IMAGE_TOKENS]

    def question(self, text: str) -> list[int]:
        """Ids after the image span, up to the answer."""
        return self._ids(self.recipe.after.format(question=text))

    def answer(self, text: str) -> list[int]:
        """Ids of the answer and the end-of-sequence token."""
        return [*self._ids(self.recipe.answer.format(answer=text)), EOS]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids up to the end-of-sequence token."""
        kept = list(ids)[: list(ids).index(EOS)] if EOS in ids else list(ids)
        return str(self.tokenizer.decode(kept)).strip()

    def _ids(self, text: str) -> list[int]:
        if text not in self.known:
            self.known[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self.known[text]


class Lesson(NamedTuple):
    """A batch of pictures, each one row: the image once, then all its questions, which do not see each other.

    Args:
        pixels: the pictures.
        ids: prefix, then question and answer by question; right-padded.
        positions: restart after the prefix for every question, so that each is placed as if it were alone.
        visible: True where a row position may look at a column position.
        labels: the id to predict at a position, `UNSCORED` outside answers.
    """

    pixels: Float[Tensor, "row 3 height width"]
    ids: Int[Tensor, "row column"]
    positions: Int[Tensor, "row column"]
    visible: Bool[Tensor, "row 1 column column"]
    labels: Int[Tensor, "row column"]


def lesson_questions(scene: Scene, seed: int, wrong_share: float) -> list[Asked]:
    """All questions about a pretraining picture; `wrong_share` of the answers have one fact wrong.

    A fact has one habitual mistake, as collected data have. A model taught so hedges between what it sees and what it was told:
    the task it leaves to preference training.
    """
    random = stream(scene.split, scene.index, "lesson", seed)
    asked = []
    for question in every_question(scene, random):
        wrong = chance(random, wrong_share)
        error_type = pick(random, sorted({item.error_type for item in question.wrong}))
        answer = next(item.answer for item in question.wrong if item.error_type == error_type)
        asked.append(replace(question, answer=answer) if wrong else question)
    return asked


def lesson_of(encoder: Encoder, indices: Sequence[int], seed: int, wrong_share: float) -> Lesson:
    """The lesson about some pictures of the split `pretrain`."""
    scenes = [scene_of("pretrain", index) for index in indices]
    rows = [_row(encoder, lesson_questions(scene, seed, wrong_share)) for scene in scenes]
    fills: Mapping[str, int] = {"ids": PAD, "positions": 0, "branches": -1, "labels": UNSCORED}
    width = max(len(row["ids"]) for row in rows)
    padded = {name: torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in rows]) for name, fill in fills.items()}
    branches = padded.pop("branches")
    related = (branches[:, :, None] == branches[:, None, :]) | (branches[:, None, :] == 0)
    visible = (related & torch.ones(width, width, dtype=torch.bool).tril())[:, None]
    return Lesson(pixels=to_pixels([render(scene) for scene in scenes]), visible=visible, **padded)


def _row(encoder: Encoder, questions: Sequence[Asked]) -> dict[str, list[int]]:
    """One picture's ids, positions, labels and branches: 0 the shared prefix, from 1 the questions."""
    ids = encoder.prefix()
    start = len(ids)
    row = {"ids": ids, "positions": list(range(start)), "branches": [0] * start, "labels": [UNSCORED] * start}
    for number, asked in enumerate(questions, 1):
        question, answer = encoder.question(asked.text), encoder.answer(asked.answer)
        length = len(question) + len(answer) - 1
        row["ids"] += question + answer[:-1]
        row["positions"] += range(start, start + length)
        row["branches"] += [number] * length
        row["labels"] += [UNSCORED] * (len(question) - 1) + answer
    return row
