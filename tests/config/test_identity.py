"""Laws of identities: what changes the weights changes the name, and nothing else does."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvlm_dpo.config.identity import cell_identity, evaluation_identity, science_of, start_identity
from medvlm_dpo.errors import InputError

CONFIG: dict[str, Any] = {
    "model": {"_target_": "a.Model", "checkpoint": "/models/one", "max_length": 512, "prompt": {"human": "{text}"}},
    "adapter": {"_target_": "a.Lora", "rank": 16, "alpha": 32.0},
    "reference": {"_target_": "a.reference"},
    "corruption": {"kind": "none"},
    "loss": {"_target_": "a.dpo", "_partial_": True, "beta": 0.1},
    "data": {"_target_": "a.Pairs", "path": "/data/a.json", "image_root": "/data/images", "on_bad_record": "error"},
    "trainer": {"max_steps": 10, "batch_size": 8, "learning_rate": 1e-4, "micro_batch_size": 4, "checkpoint_every_min": 10},
    "evaluation": {"name": "quiz", "path": "/q.jsonl", "graders": {"exact": {"_target_": "a.exact"}}, "questions": {"split": "test"}},
    "decoding": {"max_new_tokens": 32, "batch_size": 16},
    "logger": {"kind": "none"},
    "paths": {"output_dir": "/out"},
    "seed": 0,
    "check": "fast",
    "choices": {"model": "tiny", "loss": "dpo", "data": "pairs"},
}
CONTENT = {"data": "d" * 64, "model": "m" * 64}


def changed(key: str, value: object) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    *parents, last = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[last] = value
    return config


def test_name_says_what_it_is() -> None:
    identity = cell_identity(CONFIG, CONTENT)
    assert identity.name == f"tiny-dpo-pairs-s0-{identity.hash8}"
    assert len(identity.hash) == 64
    assert identity.hash.startswith(identity.hash8)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.checkpoint", "/elsewhere/one"),
        ("data.path", "/moved/b.json"),
        ("data.image_root", "/moved"),
        ("data.num_workers", 4),
        ("trainer.micro_batch_size", 1),
        ("trainer.micro_batch_tokens", 512),
        ("trainer.layout", "plain"),
        ("trainer.activation_checkpointing", True),
        ("model.dtype", None),  # the checkpoint's own, as without the key
        ("trainer.order", "shuffled"),  # as before there was the key
        ("trainer.checkpoint_every_min", 1),
        ("trainer.checkpoint_every_steps", 5),
        ("trainer.validate_every_steps", 2),
        ("trainer.threads", 8),
        ("paths.output_dir", "/other"),
        ("logger.kind", "wandb"),
        ("evaluation.name", "exam"),
        ("decoding.max_new_tokens", 4),
        ("check", "full"),
        ("sweep_name", "mine"),
        ("adapter.alpha", 32),  # the same number, written without a point
        ("loss._partial_", False),
    ],
)
def test_what_does_not_change_the_weights_does_not_change_the_cell(key: str, value: object) -> None:
    assert cell_identity(changed(key, value), CONTENT) == cell_identity(CONFIG, CONTENT)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss.beta", 0.2),
        ("model.dtype", "bfloat16"),
        ("loss._target_", "a.ipo"),
        ("loss.path", "a loss has no files: any setting of it is science"),
        ("seed", 1),
        ("model.max_length", 256),
        ("model.prompt.human", "Q: {text}"),
        ("adapter.rank", 8),
        ("reference._target_", "a.moving"),
        ("corruption.kind", "blank"),
        ("data.on_bad_record", "drop"),
        ("trainer.batch_size", 16),
        ("trainer.learning_rate", 1e-3),
        ("trainer.max_steps", 11),
        ("trainer.order", "image_tree"),
    ],
)
def test_what_changes_the_weights_changes_the_cell(key: str, value: object) -> None:
    assert cell_identity(changed(key, value), CONTENT).hash != cell_identity(CONFIG, CONTENT).hash


SUM: dict[str, Any] = {"weights": {"dpo": 1.0}, "terms": {"dpo": {"_target_": "a.dpo", "beta": 0.1}}}


def test_a_term_of_weight_0_is_not_there() -> None:
    joined = {"weights": {"dpo": 1, "sft": 0}, "terms": {**SUM["terms"], "sft": {"_target_": "a.sft"}}}
    assert cell_identity(changed("loss", joined), CONTENT) == cell_identity(changed("loss", SUM), CONTENT)
    nested = {"weights": {"all": 1.0}, "terms": {"all": joined}}
    assert cell_identity(changed("loss", nested), CONTENT) == cell_identity(changed("loss", {**nested, "terms": {"all": SUM}}), CONTENT)
    weighed = {**joined, "weights": {"dpo": 1, "sft": 0.1}}
    assert cell_identity(changed("loss", weighed), CONTENT) != cell_identity(changed("loss", SUM), CONTENT)


def test_a_card_is_words() -> None:
    assert cell_identity(changed("loss.card", {"title": "x"}), CONTENT) == cell_identity(CONFIG, CONTENT)
    with_card = {**SUM, "terms": {"dpo": {**SUM["terms"]["dpo"], "card": {"title": "x"}}}}
    assert cell_identity(changed("loss", with_card), CONTENT) == cell_identity(changed("loss", SUM), CONTENT)


@pytest.mark.parametrize("part", ["data", "model"])
def test_content_stands_in_place_of_paths(part: str) -> None:
    assert cell_identity(CONFIG, {**CONTENT, part: "x" * 64}).hash != cell_identity(CONFIG, CONTENT).hash
    with pytest.raises(InputError, match=part):
        cell_identity(CONFIG, {**CONTENT, part: ""})


def test_start_depends_on_the_model_alone() -> None:
    start = start_identity(CONFIG, CONTENT)
    assert start.name == f"tiny-start-{start.hash8}"
    assert start_identity(changed("loss.beta", 9), {**CONTENT, "data": "other"}) == start
    assert start_identity(changed("seed", 9), CONTENT) == start
    assert start_identity(CONFIG, {**CONTENT, "model": "other"}) != start
    assert start_identity(changed("model.max_length", 9), CONTENT) != start
    assert start.hash != cell_identity(CONFIG, CONTENT).hash


def test_evaluation_depends_on_questions_and_decoding_not_on_graders() -> None:
    evaluation, decoding = CONFIG["evaluation"], CONFIG["decoding"]
    name = evaluation_identity(evaluation, decoding, "q")
    assert name.startswith("quiz-")
    assert evaluation_identity({**evaluation, "graders": {}, "path": "/moved.jsonl"}, {**decoding, "batch_size": 1}, "q") == name
    assert evaluation_identity(evaluation, {**decoding, "max_new_tokens": 8}, "q") != name
    assert evaluation_identity({**evaluation, "questions": {"split": "reserve"}}, decoding, "q") != name
    assert evaluation_identity(evaluation, decoding, "other") != name


def test_names_are_safe_folder_names() -> None:
    config = {**CONFIG, "choices": {"model": "mine/tiny", "loss": "a b", "data": "../up"}}
    name = cell_identity(config, CONTENT).name
    assert "/" not in name
    assert " " not in name


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists, max_leaves=6
    )
)
def test_order_of_keys_does_not_matter_and_science_is_a_copy(value: object) -> None:
    config = {**CONFIG, "loss": {"x": value, "beta": 0.1}}
    turned = {**CONFIG, "loss": {"beta": 0.1, "x": value}}
    assert cell_identity(config, CONTENT) == cell_identity(turned, CONTENT)
    before = copy.deepcopy(config)
    science_of(config)["loss"]["beta"] = 7
    assert config == before
