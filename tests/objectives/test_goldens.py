"""Golden numbers of every loss, through its yaml, and mutants of the code that must all miss them.

The rows stand in tests/golden, one file per file of objectives/, with their derivations. A file of estimators has no rows of its own:
its mutants must miss the rows of the losses that use it.
"""

import ast
import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
from loss_world import Golden, import_golden, loss_node, misses, modules_of, own_functions, targets_of
from mutation import mutants

from medvlm_dpo.config.catalogue import loss_names

FAMILIES = sorted(path.stem for path in (Path(__file__).parents[1] / "golden").glob("*.py"))
GOLDENS: Mapping[str, Golden] = {name: golden for family in FAMILIES for name, golden in import_golden(family).GOLDENS.items()}
EQUIVALENT: Mapping[str, str] = {what: why for family in FAMILIES for what, why in import_golden(family).EQUIVALENT.items()}
PACKAGE = "medvlm_dpo.objectives"
MODULES = sorted({module.removeprefix(f"{PACKAGE}.") for golden in GOLDENS.values() for module in modules_of(loss_node(golden.loss))})


@pytest.mark.parametrize("golden", GOLDENS.values(), ids=GOLDENS.keys())
def test_golden_number(golden: Golden) -> None:
    assert misses(golden) is None


def test_every_loss_of_the_catalogue_has_golden_numbers() -> None:
    assert {golden.loss for golden in GOLDENS.values()} == set(loss_names())


def survives(module: ModuleType, source: str, goldens: Mapping[str, Golden], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether every golden row still comes out with this function in the place of the module's own."""
    mutant = ModuleType("mutant_of_a_loss")
    vars(mutant).update({key: value for key, value in vars(module).items() if not key.startswith("__")})
    functions = {function.__name__ for function in own_functions(module)}
    changed = ast.parse(source).body[0]
    assert isinstance(changed, ast.FunctionDef)
    originals = [ast.parse(inspect.getsource(vars(module)[name])) for name in functions - {changed.name}]
    try:
        for tree in [*originals, ast.parse(source)]:  # helpers too, so that they call the mutant
            exec(compile(tree, "mutant", "exec"), vars(mutant))
    except NameError:  # an annotation names what is not there
        return False
    monkeypatch.setitem(sys.modules, mutant.__name__, mutant)
    nearest_first = sorted(goldens.values(), key=lambda golden: changed.name not in targets_of(loss_node(golden.loss, *golden.overrides)))
    for golden in nearest_first:
        try:
            if misses(golden, {module.__name__: mutant.__name__}) is not None:
                return False
        except Exception:  # it does not even run, e.g. a name that nobody serves; the control below watches the harness itself
            return False
    return True


def rows_of(module: str) -> dict[str, Golden]:
    """The rows of the losses that use a module."""
    return {
        name: golden for name, golden in GOLDENS.items() if f"{PACKAGE}.{module}" in modules_of(loss_node(golden.loss, *golden.overrides))
    }


@pytest.mark.parametrize("name", MODULES)
def test_every_mutant_misses_a_golden_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flipped signs, a dropped beta, sums for means, a dropped clamp, a detached tensor: the numbers notice each of them."""
    module, rows = importlib.import_module(f"{PACKAGE}.{name}"), rows_of(name)
    tried = [(what, source) for function in own_functions(module) for what, source in mutants(function)]
    tried = [(what, source) for what, source in tried if not any(part in what for part in EQUIVALENT)]
    assert len(tried) >= 3
    survivors = [f"{what}\n{source}" for what, source in tried if survives(module, source, rows, monkeypatch)]
    print(f"{name}: {len(tried)} mutants, {len(survivors)} survive")
    assert not survivors, f"{len(survivors)} of {len(tried)} mutants survive:\n" + "\n".join(survivors)


@pytest.mark.parametrize("name", MODULES)
def test_the_unchanged_functions_survive_the_mutation_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without it a broken harness would kill every mutant."""
    module = importlib.import_module(f"{PACKAGE}.{name}")
    for function in own_functions(module):
        assert survives(module, inspect.getsource(function), rows_of(name), monkeypatch), function.__name__
