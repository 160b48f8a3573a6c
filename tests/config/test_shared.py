"""Shared settings of sums: one that nothing refers to is named, whatever its value happens to be."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from medvlm_dpo.config.catalogue import catalogue, conf_folder
from medvlm_dpo.config.schema import register
from medvlm_dpo.config.shared import unread_shared_problems

SUMS = [name for name, loss in catalogue().items() if "terms" in loss.node]


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
        yield


def problems(*overrides: str) -> list[str]:
    return unread_shared_problems(compose("config", overrides=list(overrides)), overrides)


def unread(place: str) -> str:
    parent, _, key = place.rpartition(".")
    return f"{place} is read by no term; refer to it as ${{...{key}}} inside {parent}.terms, or remove it"


@pytest.mark.parametrize("name", SUMS)
def test_the_catalogue_reads_what_it_shares(name: str) -> None:
    assert problems(f"loss={name}") == []
    assert problems(f"loss={name}", "+loss.betta=0.1") == [unread("loss.betta")], "whatever its value: 0.1 stands in the terms too"


def test_a_lone_function_shares_nothing() -> None:
    assert problems("loss=dpo") == []


def test_a_function_to_which_a_term_was_added_is_refused_elsewhere() -> None:
    assert problems("loss=dpo", "+loss@loss.terms.sft=sft", "+loss.weights.sft=1.0") == []


def test_a_reader_with_a_value_of_its_own_does_not_make_a_mistake_of_the_setting() -> None:
    assert problems("loss=dpo_nll", "loss.terms.dpo.beta=0.7") == []
    assert problems("loss=mdpo", "loss.terms.dpo.beta=0.7", "loss.terms.copo.beta=0.7", "loss.terms.anchor.beta=0.7") == []


def loss(text: str) -> DictConfig:
    config = OmegaConf.create({"loss": OmegaConf.create(text)})
    assert isinstance(config, DictConfig)
    return config


NESTED = """
beta: 0.1
weights: {inner: 1.0}
terms:
  inner:
    beta: ${...beta}
    gamma: 0.5
    amount: 0.25
    weights: {dpo: 1.0, sft: "${..amount}"}
    terms: {dpo: {beta: "${...beta}"}, sft: {gamma: 0.5}}
"""


def test_nested_sums_and_weights_that_read() -> None:
    assert unread_shared_problems(loss(NESTED), []) == [unread("loss.terms.inner.gamma")]
    unlinked = NESTED.replace('{beta: "${...beta}"}', "{beta: 0.1}")
    assert unread_shared_problems(loss(unlinked), []) == [unread("loss.terms.inner.beta"), unread("loss.terms.inner.gamma")]


def test_the_configuration_is_left_as_it_was(tmp_path: Path) -> None:
    config = loss(NESTED)
    before = OmegaConf.to_yaml(config)
    unread_shared_problems(config, [])
    assert OmegaConf.to_yaml(config) == before
