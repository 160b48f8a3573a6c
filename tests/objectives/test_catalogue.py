"""The catalogue is pinned by name against a table: signatures, defaults, estimators, sums, groups; and every loss has a card in order."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from catalogue_table import DERIVED, ESTIMATORS, FUNCTIONS, INLINE, OFFICIAL, PAPER, SUMS, UNVERIFIED, Estimator, Function, Sum
from loss_world import own_functions

from medvlm_dpo import objectives
from medvlm_dpo.config.catalogue import CatalogueLoss, catalogue, compose_loss, conf_folder, loss_names
from medvlm_dpo.objectives.cards import Card, card_of, card_problems
from medvlm_dpo.objectives.nodes import RESERVED, load_function
from medvlm_dpo.vocab import FACTS, TENSOR_NAMES

NAMES = sorted({*FUNCTIONS, *SUMS})
EQUATION_NUMBER = re.compile(r"\b(eq|eqs|eqn|equation|equations|formula|formulae)\b[.:]?\s*\(?\d", re.IGNORECASE)
FILE_AND_COMMIT = re.compile(r"\S+\.py\b.*\bcommit [0-9a-f]{7,10}\b")
OVERRIDE = re.compile(r"override /(\w+)@_global_\.(\w+)")

Node = Mapping[str, Any]


def loss(name: str) -> CatalogueLoss:
    """A loss of the catalogue as it is composed."""
    assert name in catalogue(), f"conf/loss/{name}.yaml is missing"
    return catalogue()[name]


def card(name: str) -> Card:
    """The card of a loss, whose form is right."""
    found = card_of(loss(name).node)
    assert found is not None, f"conf/loss/{name}.yaml has no card"
    return found


def without_reserved(node: Node) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in RESERVED}


def found_function(node: Node) -> dict[str, Any]:
    """What a yaml names and its function's signature says, in the words of the table."""
    function = load_function(node, "loss")
    assert not isinstance(function, str), function
    parameters = inspect.signature(function).parameters.values()
    asks = tuple(parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY)
    statistics = [name for name in asks if name not in TENSOR_NAMES and name not in FACTS]
    given = without_reserved(node)
    return {
        "function": function.__name__,
        "asks": asks,
        "takes": {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY},
        "settings": {key: value for key, value in given.items() if key not in statistics},
        "statistics": {key: found_statistic(value) for key, value in given.items() if key in statistics},
    }


def found_statistic(value: Any) -> Estimator | float:
    if not isinstance(value, dict):
        return value
    return Estimator(str(value["_target_"]).rpartition(".")[2], without_reserved(value))


def expected_function(name: str, function: Function, settings: Node) -> dict[str, Any]:
    return {
        "function": function.name or name,
        "asks": function.parameters,
        "takes": set(settings),
        "settings": dict(settings),
        "statistics": dict(function.statistics),
    }


def expected_terms(row: Sum, shared: Node) -> dict[str, dict[str, Any]]:
    """The terms of a sum, where a shared setting reaches every term that takes it."""
    terms: dict[str, dict[str, Any]] = {}
    for name in row.weights:
        function = FUNCTIONS[name] if name in FUNCTIONS else INLINE[name]
        settings = {**function.settings, **row.settings.get(name, {})}
        settings |= {key: value for key, value in shared.items() if key in settings}
        terms[name] = expected_function(name, function, settings)
    return terms


# --- signatures, defaults, sums ---------------------------------------------------------------------------------------


def test_the_catalogue_holds_every_name_and_no_other() -> None:
    assert {"missing": sorted(set(NAMES) - set(loss_names())), "not in the table": sorted(set(loss_names()) - set(NAMES))} == {
        "missing": [],
        "not in the table": [],
    }
    assert len(NAMES) == len(FUNCTIONS) + len(SUMS) == 63


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_asks_for_what_the_table_says(name: str) -> None:
    assert found_function(loss(name).node) == expected_function(name, FUNCTIONS[name], FUNCTIONS[name].settings)


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_has_the_terms_of_the_table(name: str) -> None:
    row, node = SUMS[name], loss(name).node
    assert node["weights"] == row.weights
    assert {key: found_function(term) for key, term in node["terms"].items()} == expected_terms(row, row.shared)
    assert {key: value for key, value in node.items() if key not in ("terms", "weights", "card")} == row.shared


@pytest.mark.parametrize("name", [name for name, row in SUMS.items() if row.shared])
def test_shared_settings_reach_every_term_that_takes_them(name: str) -> None:
    row = SUMS[name]
    shared = {key: 2 * value + 0.5 for key, value in row.shared.items()}
    node = compose_loss([f"loss={name}", *(f"loss.{key}={value}" for key, value in shared.items())]).node
    assert {key: found_function(term) for key, term in node["terms"].items()} == expected_terms(row, shared)


def raw_overrides(name: str) -> dict[str, str]:
    """The groups a yaml chooses by its own defaults list, whatever the root says."""
    content = yaml.safe_load((conf_folder() / "loss" / f"{name}.yaml").read_text(encoding="utf-8"))
    chosen: dict[str, str] = {}
    for entry in content.get("defaults", []):
        for key, value in entry.items() if isinstance(entry, dict) else ():
            if (match := OVERRIDE.fullmatch(key)) is not None and match[1] == match[2]:
                chosen[match[1]] = value
            else:
                assert not key.startswith("override"), f"{key} does not reach the root"
    return chosen


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_chooses_only_the_groups_of_the_table(name: str) -> None:
    """Building blocks choose none, or joining one to a loss would silently change the corruption of that loss."""
    groups = (FUNCTIONS[name] if name in FUNCTIONS else SUMS[name]).groups
    assert raw_overrides(name) == groups
    root = {"corruption": loss("sft").corruption, "reference": loss("sft").reference}
    assert {"corruption": loss(name).corruption, "reference": loss(name).reference} == {**root, **groups}


def test_the_moving_reference_moves_as_in_the_paper() -> None:
    content = yaml.safe_load((conf_folder() / "reference" / "moving.yaml").read_text(encoding="utf-8"))
    assert without_reserved(content) == {"mix": 0.6, "every_steps": 512}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_asks_for_what_the_table_says(name: str) -> None:
    modules = [importlib.import_module(f"{objectives.__name__}.{module.name}") for module in pkgutil.iter_modules(objectives.__path__)]
    (function,) = [function for module in modules for function in own_functions(module) if function.__name__ == name]
    parameters = inspect.signature(function).parameters.values()
    assert {item.name for item in parameters if item.kind is not item.KEYWORD_ONLY} == set(ESTIMATORS[name].parameters)
    assert {item.name for item in parameters if item.kind is item.KEYWORD_ONLY} == set(ESTIMATORS[name].settings)


# --- cards ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_has_a_card_in_order(name: str) -> None:
    node = loss(name).node
    assert card_problems(node, "loss") == []
    words = card(name)
    assert all(text.strip() for text in (words.title, words.formula, words.source, *words.settings.values()))
    assert all(text.strip() for text in (*words.deviations, *words.clamps, *words.pitfalls))


@pytest.mark.parametrize("name", NAMES)
def test_a_card_describes_the_settings_of_its_yaml(name: str) -> None:
    """Those of an estimator under `<parameter>.<setting>`; of a sum the shared ones, as the others stand in the cards of its terms."""
    node = loss(name).node
    described = {key for key in node if key not in (*RESERVED, "terms", "weights")}
    described |= {f"{key}.{setting}" for key in described if isinstance(node[key], dict) for setting in without_reserved(node[key])}
    assert set(card(name).settings) == described


@pytest.mark.parametrize("name", NAMES)
def test_a_card_claims_no_more_than_was_read(name: str) -> None:
    words = card(name)
    if name in DERIVED:
        assert words.evidence == "derived"
    if name not in PAPER:
        assert words.evidence == ("official code" if name in OFFICIAL else "derived")
    texts = (words.title, words.formula, words.source, words.released, words.need_not_fall, *words.settings.values())
    for text in (*texts, *words.deviations, *words.clamps, *words.pitfalls):
        assert EQUATION_NUMBER.search(text) is None, text


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_code_is_named_by_repository_file_and_commit(name: str) -> None:
    source = card(name).source
    assert OFFICIAL[name] in source
    assert FILE_AND_COMMIT.search(source) is not None, source


@pytest.mark.parametrize("name", UNVERIFIED)
def test_an_unverified_default_is_called_so(name: str) -> None:
    for setting in UNVERIFIED[name]:
        assert "we have not seen the paper's value" in card(name).settings[setting], setting


@pytest.mark.parametrize("name", NAMES)
def test_a_card_names_the_yaml_of_what_was_released(name: str) -> None:
    released = card(name).released
    if f"{name}_released" in NAMES:
        assert released == f"{name}_released"
    assert released in ("", *loss_names())
    assert released != name


@pytest.mark.parametrize(
    ("text", "numbered"),
    [("eq. 7", True), ("Equation (12) of the paper", True), ("formula 3", True), ("equal to 3", False), ("their equation", False)],
)
def test_equation_numbers_are_noticed(text: str, numbered: bool) -> None:
    assert (EQUATION_NUMBER.search(text) is not None) is numbered
