"""Trains a built-in model from nothing on the phantom's split `pretrain`, and writes its folder.

Three stages. The vision tower learns to tell the facts of pictures through a linear head that is then thrown away: what a
pretrained CLIP tower brings to a real model. The whole model learns to answer. At last it is taught answers of which a large
share is wrong, so that it hedges between what it sees and what it was told: the task it leaves to preference training.
"""

import math
import os
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from medvlm_dpo.data.phantom.anatomy import scene_of
from medvlm_dpo.data.phantom.answers import answers_to, exact_match, places_of, same_answer, with_images
from medvlm_dpo.data.phantom.lessons import FACT_CLASSES, UNSCORED, Encoder, Lesson, facts_of, lesson_of, to_pixels
from medvlm_dpo.data.phantom.own_wrong import OwnWrong, write_own_wrong
from medvlm_dpo.data.phantom.render import render
from medvlm_dpo.data.phantom.tiny_models import IMAGE_TOKENS, build_model, recipe_of, save_image_settings, train_tokenizer
from medvlm_dpo.errors import InputError
from medvlm_dpo.files import write_bytes_atomic

WARM_UP_STEPS = 50
WEIGHT_DECAY = 0.05


def pretrain_model(  # noqa: PLR0913 - these are the keys of the pretraining task's yaml
    *,
    model: str,
    output_folder: Path,
    vision_steps: int,
    vision_batch_size: int,
    num_steps: int,
    hedging_steps: int,
    batch_size: int,
    learning_rate: float,
    hedging_learning_rate: float,
    wrong_share: float,
    seed: int,
    threads: int,
    num_train_images: int = 3500,
    num_validation_images: int = 600,
    num_test_questions: int = 1000,
) -> dict[str, object]:
    """Builds one of the two built-in models; the same settings on the same machine give the same weights.

    Args:
        model: `phantom_llava` or `phantom_huatuo`.
        output_folder: gets weights, configuration, tokenizer, own_wrong.jsonl.gz and README.md.
        vision_steps: optimiser steps of the first stage.
        vision_batch_size: pictures per step of the first stage.
        num_steps: optimiser steps of the second stage, true answers.
        hedging_steps: optimiser steps of the third stage.
        batch_size: pictures per step of the second and third stage, each with all its questions.
        learning_rate: peak rate of the first two stages; AdamW with warm-up and cosine.
        hedging_learning_rate: the same of the third stage.
        wrong_share: share of the third stage's answers with one fact wrong.
        seed: of weights and of question phrasing.
        threads: torch threads.
        num_train_images: pictures of `train` whose questions the finished model answers for own_wrong pairs.
        num_validation_images: the same of `validation`.
        num_test_questions: questions of `test` for the README.

    Returns:
        `parameters`, `seconds`, and `exact_match` with the picture and `grey_exact_match` without: overall and by error type.

    Raises:
        InputError: a setting is out of range or the model is unknown.
    """
    sizes = {"vision_batch_size": vision_batch_size, "num_steps": num_steps, "batch_size": batch_size, "threads": threads}
    problems = [f"{name}={value}: expected a whole number of at least 1." for name, value in sizes.items() if value < 1]
    if problems:
        raise InputError(problems)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    started = time.monotonic()
    encoder = Encoder(recipe_of(model), train_tokenizer(model))
    network = build_model(model)
    warm_up_vision(network, vision_steps, vision_batch_size, learning_rate)
    true, hedged = range(num_steps * batch_size), range(num_steps * batch_size, (num_steps + hedging_steps) * batch_size)
    teach(network, encoder, true, batch_size=batch_size, learning_rate=learning_rate, seed=seed, wrong_share=0.0)
    certain = _overall(network, encoder, num_test_questions)
    teach(network, encoder, hedged, batch_size=batch_size, learning_rate=hedging_learning_rate, seed=seed, wrong_share=wrong_share)
    network.eval()
    save(network, encoder, output_folder, {"train": num_train_images, "validation": num_validation_images})
    shown = exact_match(network, encoder, "test", num_test_questions)
    grey = exact_match(network, encoder, "test", num_test_questions, blank=True)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    seconds = round(time.monotonic() - started)
    cost = f"{seconds} s with {threads} of {os.cpu_count()} {platform.machine()} cores"
    text = _readme(model, parameters, cost) + _stages(wrong_share, certain) + _table(shown, grey, num_test_questions)
    write_bytes_atomic(output_folder / "README.md", text.encode())
    return {"parameters": parameters, "seconds": seconds, "exact_match": shown, "grey_exact_match": grey}


def warm_up_vision(network: LlavaForConditionalGeneration, steps: int, batch_size: int, learning_rate: float) -> None:
    """Trains the vision tower to tell the facts of pictures through a linear head, which is then dropped."""
    tower = network.model.vision_tower
    head = nn.Linear(IMAGE_TOKENS * tower.config.hidden_size, sum(FACT_CLASSES))
    for step in _optimiser_steps([*tower.parameters(), *head.parameters()], steps, learning_rate, "vision"):
        scenes = [scene_of("pretrain", step * batch_size + number) for number in range(batch_size)]
        facts = torch.tensor([facts_of(scene) for scene in scenes])
        patches = tower(to_pixels([render(scene) for scene in scenes])).last_hidden_state[:, 1:]
        guesses = head(patches.flatten(1)).split(FACT_CLASSES, dim=1)
        torch.stack([nn.functional.cross_entropy(guess, facts[:, fact]) for fact, guess in enumerate(guesses)]).sum().backward()


def teach(
    network: LlavaForConditionalGeneration,
    encoder: Encoder,
    images: Sequence[int],
    *,
    batch_size: int,
    learning_rate: float,
    seed: int,
    wrong_share: float,
) -> None:
    """Trains the whole model on answers about the given pictures of `pretrain`, each used once."""
    for step in _optimiser_steps(list(network.parameters()), len(images) // batch_size, learning_rate, "answers"):
        lesson = lesson_of(encoder, images[step * batch_size : (step + 1) * batch_size], seed, wrong_share)
        lesson_loss(network, len(encoder.prefix()), lesson).backward()


def lesson_loss(network: LlavaForConditionalGeneration, prefix_length: int, lesson: Lesson) -> Tensor:
    """Mean cross-entropy of the answers' tokens, the end-of-sequence token included."""
    hidden = network.model.language_model(
        inputs_embeds=with_images(network, lesson.ids, lesson.pixels, prefix_length),
        attention_mask=lesson.visible,
        position_ids=lesson.positions,
        use_cache=False,
    ).last_hidden_state
    scored = lesson.labels != UNSCORED
    return nn.functional.cross_entropy(network.lm_head(hidden[scored]), lesson.labels[scored])


def save(network: LlavaForConditionalGeneration, encoder: Encoder, folder: Path, num_images: dict[str, int]) -> None:
    """Writes the model folder: weights, configuration, tokenizer, image settings, and the model's own wrong answers."""
    folder.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    save_image_settings(folder)
    places = [place for split, number in num_images.items() for place in places_of(split, number)]
    wrong = [
        OwnWrong(place.split, place.image, place.question, answer)
        for place, answer in zip(places, answers_to(network, encoder, places), strict=True)
        if answer and not same_answer(place.asked.answer, answer)
    ]
    write_own_wrong(folder, wrong)


def _optimiser_steps(parameters: Sequence[nn.Parameter], steps: int, learning_rate: float, stage: str) -> Iterator[int]:
    """Yields each step's number, then uses the gradients the caller made: clipped AdamW, warm-up, cosine down to 5%."""
    groups = [
        {"params": [tensor for tensor in parameters if tensor.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [tensor for tensor in parameters if tensor.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate_share(step, steps))
    for step in range(steps):
        yield step
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            print(f"{stage}: step {step + 1} of {steps}", flush=True)


def _rate_share(step: int, steps: int) -> float:
    warm_up = min((step + 1) / WARM_UP_STEPS, 1.0)
    return warm_up * (0.05 + 0.475 * (1.0 + math.cos(math.pi * step / steps)))


def _overall(network: LlavaForConditionalGeneration, encoder: Encoder, num_questions: int) -> float:
    network.eval()
    share = exact_match(network, encoder, "test", num_questions)["overall"]
    network.train()
    return share


def _readme(model: str, parameters: int, cost: str) -> str:
    return f"""# {model}

A LLaVA architecture (CLIP vision tower, two-layer projector, {recipe_of(model).family} language model) of {parameters:,} parameters,
trained from nothing on the phantom's split `pretrain`. It answers questions about computed pictures and is of no medical use.

Rebuild it with

    python run.py task=pretrain model={model}

which took {cost}, torch {torch.__version__}, everything below included.

`own_wrong.jsonl.gz` holds its wrong greedy answers on `train` and `validation`: the rejected answers of own_wrong pairs.

"""


def _stages(wrong_share: float, certain: float) -> str:
    return f"""Training has three stages: the vision tower alone, then the whole model on true answers, then a short one in which
{wrong_share:.0%} of the answers have one fact wrong, on purpose. Before the last stage exact match was {certain:.3f}. After it the
model still sees what it saw, but hedges between the true fact and others: a fault that preference training can mend, and
that a model certain of its answers would not have.

"""


def _table(shown: dict[str, float], grey: dict[str, float], num_questions: int) -> str:
    head = f"Exact match (letter case aside) on {num_questions} questions of `test`, with the picture and with a grey one in its place:"
    rows = [f"| {name} | {shown[name]:.3f} | {grey[name]:.3f} |" for name in shown]
    return "\n".join([head, "", "| questions about | picture | grey |", "|---|---|---|", *rows]) + "\n"
