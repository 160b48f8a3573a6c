"""Intervals from several variance parts: quantiles, golden numbers and laws."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvlm_dpo.statistics.intervals import Part, half_width, holm, mean_and_spread, p_value, t_upper

PARTS = st.lists(st.builds(Part, st.floats(1e-6, 1.0), st.integers(1, 300)), min_size=1, max_size=3)


@pytest.mark.parametrize(("freedom", "value"), [(1, 12.706205), (2, 4.302653), (3, 3.182446), (4, 2.776445), (7, 2.364624), (9, 2.262157)])
def test_uppers(freedom, value):
    assert t_upper(0.025, freedom) == pytest.approx(value, abs=5e-7)


def test_mean_and_spread_by_hand():
    """(1, 2, 6): mean 3, squares 4 + 1 + 9 = 14, over n - 1 = 2: 7."""
    assert mean_and_spread([1.0, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt(7)), 3)
    assert mean_and_spread([0.5]) == (0.5, None, 1)
    with pytest.raises(ValueError, match="at least one"):
        mean_and_spread([])


def test_one_part_is_the_usual_t_interval():
    assert half_width([Part(4.0, 2)]) == pytest.approx(2 * 4.302653, abs=1e-5)


@pytest.mark.parametrize(
    ("raw", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005, 0.04], [0.04, 0.09, 0.09, 0.025, 0.09]),
        ([0.01, None, 0.03], [0.03, None, 0.06]),
        ([0.7, 0.9], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holm(raw, adjusted):
    assert holm(raw) == [None if value is None else pytest.approx(value) for value in adjusted]


@given(PARTS, st.floats(0.01, 3.0))
def test_p_is_the_level_at_which_the_interval_touches_zero(parts, size):
    """And it is below 0.05 exactly when the 95 % interval excludes 0."""
    p = p_value(size, parts)
    assert p_value(-size, parts) == p
    if 1e-12 < p < 1 - 1e-9:
        assert half_width(parts, p) == pytest.approx(size, rel=1e-6)
    if abs(half_width(parts) - size) > 1e-9:
        assert (p < 0.05) == (size > half_width(parts))


@given(PARTS, st.integers(0, 2), st.floats(1.01, 10.0))
def test_more_variance_widens_and_more_freedom_narrows(parts, place, factor):
    part = parts[place % len(parts)]
    rest = [other for index, other in enumerate(parts) if index != place % len(parts)]
    assert half_width([*rest, Part(part.variance * factor, part.degrees_of_freedom)]) > half_width(parts)
    assert half_width([*rest, Part(part.variance, part.degrees_of_freedom + 1)]) < half_width(parts)


def test_extremes():
    assert p_value(0.0, [Part(1.0, 3)]) == 1.0
    assert p_value(1e9, [Part(1e-12, 500)]) == 1e-30
