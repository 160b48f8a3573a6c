"""The shipped models: small, complete, looking at the picture, and wrong where their own_wrong file says so."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from medvlm_dpo.data.phantom.anatomy import scene_of
from medvlm_dpo.data.phantom.answers import Place, answers_to, exact_match
from medvlm_dpo.data.phantom.lessons import Encoder
from medvlm_dpo.data.phantom.own_wrong import read_own_wrong
from medvlm_dpo.data.phantom.questions import questions_of
from medvlm_dpo.data.phantom.source import PhantomPairs
from medvlm_dpo.data.phantom.tiny_models import MODELS_FOLDER, RECIPES, recipe_of

NAMES = sorted(RECIPES)


def _load(name: str) -> tuple[LlavaForConditionalGeneration, Encoder]:
    folder = MODELS_FOLDER / name
    network = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    return network, Encoder(recipe_of(name), PreTrainedTokenizerFast.from_pretrained(folder))


@pytest.mark.parametrize("name", NAMES)
def test_folder_is_small_float32_and_complete(name: str) -> None:
    folder = MODELS_FOLDER / name
    weights = load_file(folder / "model.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) < 1_000_000
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "README.md"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5_000_000
    assert f"python run.py task=pretrain model={name}" in Path(folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_model_is_good_but_not_perfect_and_looks_at_the_picture(name: str) -> None:
    network, encoder = _load(name)
    shown, grey = (exact_match(network, encoder, "test", 400, blank=blank)["overall"] for blank in (False, True))
    assert 0.60 < shown < 0.92
    assert grey < shown - 0.15


@pytest.mark.parametrize("name", NAMES)
def test_own_wrong_answers_are_the_models_own_and_wrong(name: str) -> None:
    network, encoder = _load(name)
    records = read_own_wrong(MODELS_FOLDER / name)[:60]
    places = [Place(r.split, r.image, r.question, questions_of(scene_of(r.split, r.image))[r.question]) for r in records]
    # Another machine may round a near tie differently, so a few answers may differ.
    same = sum(answer == record.answer for answer, record in zip(answers_to(network, encoder, places), records, strict=True))
    assert same >= 57
    assert all(place.asked.answer.casefold() != record.answer.casefold() for place, record in zip(places, records, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_there_are_enough_pairs_of_every_mix(name: str, fraction: float) -> None:
    source = PhantomPairs("public", 2000, 300, own_wrong_fraction=fraction, starting_model=f"builtin:{name}")
    examples = source.read().examples
    assert (len(examples["train"]), len(examples["validation"])) == (2000, 300)
    assert len({pair.id for pair in examples["train"]}) == 2000
    assert all(path.is_file() for path in source.input_files())
