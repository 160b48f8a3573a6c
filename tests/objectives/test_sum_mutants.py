"""Mutants of every sum of the catalogue. The formulas have theirs in test_goldens; these are mistakes of the yaml that joins them."""

import pytest
from loss_world import golden_rows, loss_node
from sum_mutation import SUMS, bare, edited, exchanged, outcome, rows_of, scaled_weight, survives, survivors_of


def test_the_catalogue_has_sums() -> None:
    assert {"slic", "cpo", "cpo_simpo", "orpo", "dpo_nll", "rpo", "mpo", "mdpo"} <= set(SUMS)


@pytest.mark.parametrize("name", SUMS)
def test_every_mutant_of_a_sum_misses_a_golden_number(name: str) -> None:
    num_mutants, survivors = survivors_of(name)
    assert num_mutants >= 4
    assert not survivors, f"{len(survivors)} of {num_mutants} mutants of {name} survive:\n" + "\n".join(survivors)


@pytest.mark.parametrize("name", SUMS)
def test_the_unchanged_sum_survives(name: str) -> None:
    """The control: the bare sum gives every golden number, so a mutant that misses one misses it by its mistake."""
    for golden in rows_of(name):
        assert outcome(golden, lambda row: bare(loss_node(row.loss, *row.overrides))) == "kept"


def test_what_no_row_can_tell_apart_is_seen_as_a_survivor() -> None:
    """A mutant that changes nothing; and the released mDPO bug, dpo in the place of copo, on set A, where both have the same margin."""
    rows = rows_of("dpo_nll")
    assert survives(rows, edited(("dpo",), scaled_weight(1)))
    assert not survives(rows, edited(("dpo",), scaled_weight(2)))
    bug = edited(("copo",), exchanged(bare(loss_node("dpo"))))
    golden = golden_rows()
    assert survives([golden["mdpo A"]], bug)
    assert not survives([golden["mdpo B"]], bug)
