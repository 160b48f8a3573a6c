"""Golden numbers of every loss, through its yaml, and mutants of the code that must all miss them.

The rows stand in tests/golden, one file per file of objectives/, with their derivations. A file of estimators has no rows of its own:
its mutants must miss the rows of the losses that use it. `python tests/run_mutants.py` prints the counts.
"""

import importlib
import inspect

import pytest
from loss_world import PACKAGE, Golden, golden_modules, golden_rows, misses, own_functions
from mutation import survives, survivors_of

from medvlm_dpo.config.catalogue import loss_names

GOLDENS, MODULES = golden_rows(), golden_modules()


@pytest.mark.parametrize("golden", GOLDENS.values(), ids=GOLDENS.keys())
def test_golden_number(golden: Golden) -> None:
    assert misses(golden) is None


def test_every_loss_of_the_catalogue_has_golden_numbers() -> None:
    assert {golden.loss for golden in GOLDENS.values()} == set(loss_names())


@pytest.mark.parametrize("name", MODULES)
def test_every_mutant_misses_a_golden_number(name: str) -> None:
    """Flipped signs, a dropped beta, sums for means, a dropped clamp, a detached tensor: the numbers notice each of them."""
    num_mutants, survivors = survivors_of(name)
    assert num_mutants >= 3
    assert not survivors, f"{len(survivors)} of {num_mutants} mutants survive:\n" + "\n".join(survivors)


@pytest.mark.parametrize("name", MODULES)
def test_the_unchanged_functions_survive_the_mutation_run(name: str) -> None:
    """The control: without it a broken harness would kill every mutant."""
    module = importlib.import_module(f"{PACKAGE}.{name}")
    for function in own_functions(module):
        assert survives(module, inspect.getsource(function)), function.__name__
