"""Pretraining: the tree layout equals plain sequences, the three stages run, the same settings give the same weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from medvlm_dpo.data.phantom.anatomy import scene_of
from medvlm_dpo.data.phantom.answers import answers_to, places_of
from medvlm_dpo.data.phantom.lessons import FACT_CLASSES, UNSCORED, Encoder, facts_of, lesson_of, lesson_questions, to_pixels
from medvlm_dpo.data.phantom.own_wrong import read_own_wrong
from medvlm_dpo.data.phantom.questions import questions_of
from medvlm_dpo.data.phantom.render import render
from medvlm_dpo.data.phantom.tiny_models import CONTEXT, PAD, RECIPES, build_model, recipe_of, train_tokenizer
from medvlm_dpo.errors import InputError
from medvlm_dpo.files import sha256_of_file
from medvlm_dpo.pretrain import lesson_loss, pretrain_model

SETTINGS: Mapping[str, float | int] = {
    "vision_steps": 2,
    "vision_batch_size": 4,
    "num_steps": 2,
    "hedging_steps": 1,
    "batch_size": 2,
    "learning_rate": 1e-3,
    "hedging_learning_rate": 1e-3,
    "wrong_share": 0.5,
    "threads": 1,
    "num_train_images": 2,
    "num_validation_images": 1,
    "num_test_questions": 8,
}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(recipe_of("phantom_llava"), train_tokenizer("phantom_llava"))


def test_tokenizer_encodes_any_text_and_phantom_words_in_one_token(encoder: Encoder) -> None:
    tokenizer = encoder.tokenizer
    for text in ("Höhe 3 µm → 右肺\t\x00\n", "no findings", "Ünknown <image> word"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    for word in (" left", " right", " lesion", " yes", " ultrasound", " hemispheres"):
        assert len(tokenizer.encode(word, add_special_tokens=False)) == 1


@pytest.mark.parametrize("model", sorted(RECIPES))
def test_models_are_small_and_read_long_texts(model: str) -> None:
    torch.manual_seed(0)
    network = build_model(model)
    assert sum(parameter.numel() for parameter in network.parameters()) < 1_000_000
    text: Any = network.config.text_config  # typed as several things by transformers
    assert text.max_position_embeddings == CONTEXT >= 512
    assert len(train_tokenizer(model)) <= text.vocab_size


@pytest.mark.parametrize("model", sorted(RECIPES))
def test_lesson_equals_plain_sequences_through_the_whole_model(model: str) -> None:
    """The packed tree gives the loss that one sequence per question gives through transformers' own forward."""
    torch.manual_seed(1)
    network = build_model(model).double().eval()
    encoder = Encoder(recipe_of(model), train_tokenizer(model))
    lesson = lesson_of(encoder, [3, 4], seed=0, wrong_share=0.3)
    lesson = lesson._replace(pixels=lesson.pixels.double())
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row, index in enumerate((3, 4)):
        for asked in lesson_questions(scene_of("pretrain", index), 0, 0.3):
            prompt, answer = encoder.prefix() + encoder.question(asked.text), encoder.answer(asked.answer)
            logits = network(input_ids=torch.tensor([prompt + answer]), pixel_values=lesson.pixels[row : row + 1]).logits
            total += nn.functional.cross_entropy(logits[0, len(prompt) - 1 : -1], torch.tensor(answer), reduction="sum")
            count += len(answer)
    assert count == int((lesson.labels != UNSCORED).sum())
    torch.testing.assert_close(lesson_loss(network, len(encoder.prefix()), lesson), total / count, rtol=1e-9, atol=0)


def test_greedy_answers_are_those_of_one_question_at_a_time(encoder: Encoder) -> None:
    torch.manual_seed(2)
    network = build_model("phantom_llava").eval()
    places = list(places_of("test", 3))
    together = answers_to(network, encoder, places)
    untyped: Any = network  # its generate has a protocol that the class itself does not satisfy
    for place, answer in zip(places, together, strict=True):
        ids = torch.tensor([encoder.prefix() + encoder.question(place.asked.text)])
        pixels = to_pixels([render(scene_of(place.split, place.image))])
        generated = untyped.generate(
            input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False, pad_token_id=PAD
        )
        assert encoder.decode(generated[0, ids.shape[1] :].tolist()) == answer


def test_facts_are_within_their_classes_and_tell_scenes_apart() -> None:
    facts = [facts_of(scene_of("pretrain", index)) for index in range(200)]
    assert all(0 <= value < size for row in facts for value, size in zip(row, FACT_CLASSES, strict=True))
    assert len({tuple(row) for row in facts}) > 100


def test_share_of_wrong_answers_in_lessons() -> None:
    """Wrong answers come from the question's own list; their share is what was asked for."""
    wrong = total = 0
    for index in range(150):
        scene = scene_of("pretrain", index)
        for taught, true in zip(lesson_questions(scene, 0, 0.4), lesson_questions(scene, 0, 0.0), strict=True):
            assert taught.text == true.text
            assert taught.answer in {true.answer, *(item.answer for item in true.wrong)}
            wrong += taught.answer != true.answer
            total += 1
    assert abs(wrong / total - 0.4) < 0.05


def test_pretraining_writes_its_folder_and_repeats_bit_for_bit(tmp_path: Path) -> None:
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        folder = tmp_path / name
        summary = pretrain_model(model="phantom_huatuo", output_folder=folder, seed=seed, **SETTINGS)  # type: ignore[arg-type]
        assert summary["exact_match"]["overall"] <= 1.0  # type: ignore[index]
        hashes.append(sha256_of_file(folder / "model.safetensors"))
    assert hashes[0] == hashes[1] != hashes[2]
    assert "python run.py task=pretrain model=phantom_huatuo" in (tmp_path / "a" / "README.md").read_text()
    assert len(PreTrainedTokenizerFast.from_pretrained(tmp_path / "a")) > 260
    for record in read_own_wrong(tmp_path / "a"):
        asked = questions_of(scene_of(record.split, record.image))[record.question]
        assert record.answer.casefold() != asked.answer.casefold()


def test_wrong_settings_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="threads=0"):
        pretrain_model(model="phantom_llava", output_folder=tmp_path / "x", seed=0, **{**SETTINGS, "threads": 0})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="did you mean phantom_llava"):
        pretrain_model(model="phantom_lava", output_folder=tmp_path / "x", seed=0, **SETTINGS)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()
