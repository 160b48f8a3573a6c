"""Pairs and questions as data sources."""

import gzip
from pathlib import Path

import pytest

from medvlm_dpo.data.phantom.own_wrong import OWN_WRONG_FILE, OwnWrong, read_own_wrong, write_own_wrong
from medvlm_dpo.data.phantom.pairs import PAIR_WEIGHTS, PhantomImage
from medvlm_dpo.data.phantom.questions import QUESTION_TYPES, questions_of
from medvlm_dpo.data.phantom.source import PhantomPairs, PhantomQuestions
from medvlm_dpo.errors import InputError
from medvlm_dpo.files import sha256_of_json


def _pairs(folder: Path, fraction: float, number: int = 20) -> PhantomPairs:
    return PhantomPairs("public", num_pairs=number, num_validation_pairs=6, own_wrong_fraction=fraction, starting_model=str(folder))


def _model_with_own_wrong(folder: Path) -> Path:
    records = [OwnWrong(split, index, 1, f"wrong {index}") for split in ("train", "validation") for index in range(15)]
    write_own_wrong(folder, records)
    return folder


def test_own_wrong_file_comes_back_and_its_bytes_repeat(tmp_path: Path) -> None:
    records = [OwnWrong("train", 3, 1, "left lung ü"), OwnWrong("train", 1, 0, "no")]
    first = write_own_wrong(tmp_path, records).read_bytes()
    assert read_own_wrong(tmp_path) == tuple(sorted(records))
    assert write_own_wrong(tmp_path, reversed(records)).read_bytes() == first


def test_the_mix_of_pairs_is_exact_and_no_question_is_used_twice(tmp_path: Path) -> None:
    report = _pairs(_model_with_own_wrong(tmp_path), 0.5).read()
    train, validation = report.examples["train"], report.examples["validation"]
    assert [len(train), len(validation), report.num_records] == [20, 6, 26]
    assert sum(pair.extra["kind"] == "own_wrong" for pair in train) == 10
    assert sum(pair.extra["kind"] == "own_wrong" for pair in validation) == 3
    assert len({(pair.image.key, pair.extra["question"]) for pair in train}) == 20
    for pair in train:
        asked = questions_of(PhantomImage("train", int(pair.image.key.split("/")[-1])).scene)[pair.extra["question"]]
        assert (pair.chosen, pair.turns[0].text) == (asked.answer, asked.text)
        if pair.extra["kind"] == "own_wrong":
            assert str(pair.rejected).startswith("wrong ")
            assert pair.error_type == asked.error_type


def test_without_own_wrong_answers_no_model_is_needed(tmp_path: Path) -> None:
    source = _pairs(tmp_path / "nowhere", 0.0)
    assert {pair.extra["kind"] for pair in source.read().examples["train"]} == {"single_fact"}
    assert source.input_files() == ()
    assert PhantomPairs("public", 20, 6, 0.0, None).read() == source.read()


def test_reading_twice_gives_the_same_pairs(tmp_path: Path) -> None:
    source = _pairs(_model_with_own_wrong(tmp_path), 0.5)
    assert source.read() == source.read()
    assert source.input_files() == (tmp_path / OWN_WRONG_FILE,)


def test_missing_file_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.own_wrong_fraction=0"):
        _pairs(tmp_path, 0.5).read()


def test_too_few_own_wrong_answers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"20 of 20 train pairs would be own_wrong, but .* has 15"):
        _pairs(_model_with_own_wrong(tmp_path), 1.0).read()


@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress(b"{}\n"), gzip.compress(b'{"generator_version": 0}\n')],
    ids=["no gzip", "no version", "old version"],
)
def test_damaged_or_old_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / OWN_WRONG_FILE).write_bytes(content)
    with pytest.raises(InputError, match=OWN_WRONG_FILE):
        _pairs(tmp_path, 0.5).read()


def test_wrong_settings_are_all_reported() -> None:
    with pytest.raises(InputError) as caught:
        PhantomPairs("public", num_pairs=0, num_validation_pairs=-1, own_wrong_fraction=1.5, starting_model="x")
    assert len(caught.value.problems) == 3
    with pytest.raises(InputError, match="did you mean test"):
        PhantomQuestions("tset", 4, "public")


def test_unknown_built_in_model() -> None:
    source = PhantomPairs("public", 2, 2, own_wrong_fraction=0.5, starting_model="builtin:phantom_lava")
    with pytest.raises(InputError, match="did you mean phantom_llava"):
        source.read()


def test_questions_are_the_first_of_their_split() -> None:
    few, more = PhantomQuestions("test", 6, "public").read().questions, PhantomQuestions("test", 12, "public").read().questions
    assert more[:6] == few
    assert [question.id for question in few] == [f"phantom/test/{i // 4}/{i % 4}" for i in range(6)]
    assert few[0].image.content_hash() != few[4].image.content_hash()


def test_flipping_swaps_a_share_of_the_training_pairs_and_no_other():
    plain = PhantomPairs("public", 200, 20, 0.0, "builtin:phantom_llava").read().examples
    flipped = PhantomPairs("public", 200, 20, 0.0, "builtin:phantom_llava", flip_fraction=0.5).read().examples
    assert flipped["validation"] == plain["validation"]
    swapped = [
        (one.chosen, one.rejected) == (other.rejected, other.chosen) for one, other in zip(plain["train"], flipped["train"], strict=True)
    ]
    assert all(done or one == other for done, one, other in zip(swapped, plain["train"], flipped["train"], strict=True))
    assert 70 <= sum(swapped) <= 130  # 200 fair draws lie within 30 of 100 but for one case in 10,000
    everything = PhantomPairs("public", 200, 20, 0.0, "builtin:phantom_llava", flip_fraction=1.0).read().examples["train"]
    assert [pair.chosen for pair in everything] == [pair.rejected for pair in plain["train"]]


def test_a_flip_fraction_out_of_range_is_told():
    with pytest.raises(InputError, match=r"data.flip_fraction=1.5: expected a number from 0 to 1"):
        PhantomPairs("public", 2, 1, 0.0, "builtin:phantom_llava", flip_fraction=1.5)


def test_every_pair_has_the_weight_of_its_error_type(tmp_path: Path) -> None:
    report = _pairs(_model_with_own_wrong(tmp_path), 0.5, number=30).read()
    pairs = [*report.examples["train"], *report.examples["validation"]]
    assert all(pair.pair_weight == PAIR_WEIGHTS[str(pair.error_type)] for pair in pairs)
    assert {pair.extra["kind"] for pair in pairs} == {"own_wrong", "single_fact"}
    assert set(PAIR_WEIGHTS) == set(QUESTION_TYPES)
    assert all(0 < weight <= 1 for weight in PAIR_WEIGHTS.values())
    assert PAIR_WEIGHTS["presence"] == PAIR_WEIGHTS["laterality"] == max(PAIR_WEIGHTS.values())
    assert PAIR_WEIGHTS["modality"] == min(PAIR_WEIGHTS.values())


def test_the_worse_picture_is_another_one_of_its_split_that_looks_alike() -> None:
    source = PhantomPairs("public", 60, 20, 0.0, "builtin:phantom_llava")
    report, again = source.read(), source.read()
    for split in ("train", "validation"):
        for pair, repeated in zip(report.examples[split], again.examples[split], strict=True):
            worse = pair.rejected_image
            assert isinstance(worse, PhantomImage)
            assert isinstance(pair.image, PhantomImage)
            assert worse == repeated.rejected_image
            assert (worse.split, worse.index > pair.image.index) == (split, True)
            assert (worse.scene.modality, worse.scene.region) == (pair.image.scene.modality, pair.image.scene.region)
            between = (PhantomImage(split, index).scene for index in range(pair.image.index + 1, worse.index))
            assert all((scene.modality, scene.region) != (worse.scene.modality, worse.scene.region) for scene in between)
            assert worse.content_hash() != pair.image.content_hash()


def test_pairs_themselves_are_those_of_the_first_version() -> None:
    """Weights and worse pictures came later: ids, texts and pictures stay, and so do the built-in models' own wrong answers."""
    pairs = PhantomPairs("public", 200, 50, 0.25, "builtin:phantom_llava").read().examples
    told = [
        [pair.id, pair.turns[0].text, pair.chosen, pair.rejected, pair.error_type, pair.image.content_hash()]
        for split in ("train", "validation")
        for pair in pairs[split]
    ]
    assert sha256_of_json(told) == "7db9952acd9d5cd36d49be95f6957bf8dc1cd878eff35bffb4dae9b71172c3e1"
