"""Greedy answers of a built-in model to phantom questions, batched without padding; for building the models only."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from medvlm_dpo.data.phantom.anatomy import IMAGE_SIDE, scene_of
from medvlm_dpo.data.phantom.lessons import Encoder, to_pixels
from medvlm_dpo.data.phantom.questions import QUESTION_TYPES, QUESTIONS_PER_IMAGE, Asked, questions_of
from medvlm_dpo.data.phantom.render import render
from medvlm_dpo.data.phantom.tiny_models import EOS, IMAGE_TOKENS

GREY = 128
MAX_NEW_TOKENS = 32
GENERATION_BATCH = 256


class Place(NamedTuple):
    """A question and where it stands: question `question` of image `image` of `split`."""

    split: str
    image: int
    question: int
    asked: Asked


def places_of(split: str, num_images: int) -> Iterator[Place]:
    """Every question of the first images of a split."""
    for image in range(num_images):
        for question, asked in enumerate(questions_of(scene_of(split, image))):
            yield Place(split, image, question, asked)


def same_answer(truth: str, answer: str) -> bool:
    """Equal but for letter case and blanks."""
    return truth.casefold().split() == answer.casefold().split()


@torch.no_grad()
def answers_to(network: LlavaForConditionalGeneration, encoder: Encoder, places: Sequence[Place], *, blank: bool = False) -> list[str]:
    """Greedy answers in the order of `places`; questions of equal length share a batch.

    Args:
        network: in evaluation mode.
        encoder: ids of the same model.
        places: what to ask.
        blank: show a constant grey picture in place of every image.
    """
    answers = [""] * len(places)
    by_length: dict[int, list[int]] = {}
    for number, place in enumerate(places):
        by_length.setdefault(len(encoder.question(place.asked.text)), []).append(number)
    for numbers in by_length.values():
        for at in range(0, len(numbers), GENERATION_BATCH):
            batch = numbers[at : at + GENERATION_BATCH]
            generated = _greedy(network, encoder, [places[number] for number in batch], blank=blank)
            for number, ids in zip(batch, generated.tolist(), strict=True):
                answers[number] = encoder.decode(ids)
    return answers


def exact_match(
    network: LlavaForConditionalGeneration, encoder: Encoder, split: str, num_questions: int, *, blank: bool = False
) -> dict[str, float]:
    """Share of a split's questions answered exactly (see `same_answer`): `overall`, and by error type."""
    places = list(places_of(split, -(-num_questions // QUESTIONS_PER_IMAGE)))[:num_questions]
    answers = answers_to(network, encoder, places, blank=blank)
    hits: dict[str, list[bool]] = {"overall": [], **{error_type: [] for error_type in QUESTION_TYPES}}
    for place, answer in zip(places, answers, strict=True):
        hit = same_answer(place.asked.answer, answer)
        hits["overall"].append(hit)
        hits[place.asked.error_type].append(hit)
    return {name: round(sum(group) / len(group), 3) for name, group in hits.items() if group}


def with_images(
    network: LlavaForConditionalGeneration, ids: Int[Tensor, "row column"], pixels: Float[Tensor, "row 3 height width"], prefix_length: int
) -> Float[Tensor, "row column hidden"]:
    """Input embeddings with the image span, the end of the prefix, replaced by the features of each row's image."""
    patches = network.model.vision_tower(pixels).last_hidden_state[:, 1:]
    features = network.model.multi_modal_projector(patches)
    embedded = network.get_input_embeddings()(ids)
    return torch.cat([embedded[:, : prefix_length - IMAGE_TOKENS], features, embedded[:, prefix_length:]], dim=1)


def _greedy(
    network: LlavaForConditionalGeneration, encoder: Encoder, places: Sequence[Place], *, blank: bool
) -> Int[Tensor, "place generated"]:
    """Ids of greedy answers to equally long prompts; a finished row repeats the end-of-sequence token."""
    prefix = encoder.prefix()
    ids = torch.tensor([prefix + encoder.question(place.asked.text) for place in places])
    pixels = to_pixels([_plane(place, blank=blank) for place in places])
    language_model = network.model.language_model
    state = language_model(inputs_embeds=with_images(network, ids, pixels, len(prefix)), use_cache=True)
    done = torch.zeros(len(places), dtype=torch.bool)
    generated: list[Tensor] = []
    while len(generated) < MAX_NEW_TOKENS and not done.all():
        best = network.lm_head(state.last_hidden_state[:, -1]).argmax(-1)
        generated.append(torch.where(done, EOS, best))
        done |= generated[-1] == EOS
        state = language_model(input_ids=generated[-1][:, None], past_key_values=state.past_key_values, use_cache=True)
    return torch.stack(generated, dim=1)


def _plane(place: Place, *, blank: bool) -> UInt8[np.ndarray, "height width"]:
    return np.full((IMAGE_SIDE, IMAGE_SIDE), GREY, np.uint8) if blank else render(scene_of(place.split, place.image))
