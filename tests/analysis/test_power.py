"""How many seeds a difference needs: against simulation, and a textbook's figure."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tpcli.analysis.power import detectable, power, seeds_needed


@pytest.mark.parametrize(("seeds", "difference"), [(2, 6.0), (5, 1.0), (5, 1.7), (20, 0.5)])
def test_power_is_how_often_the_test_finds_it(seeds: int, difference: float) -> None:
    random = np.random.default_rng(0)
    drawn = random.normal(difference, 1.0, size=(20_000, seeds))
    found = stats.ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05
    assert power(seeds, difference, 1.0) == pytest.approx(found.mean(), abs=0.012)


def test_the_textbooks_figure_for_a_medium_effect() -> None:
    """Cohen's table: d = .5, alpha .05 two-sided, power .8, one sample: 34 pairs."""
    assert seeds_needed(0.5, 1.0) == 34
    assert power(33, 0.5, 1.0) < 0.8 <= power(34, 0.5, 1.0)


def test_only_the_ratio_counts_and_the_sign_does_not() -> None:
    assert power(5, 0.02, 0.01) == pytest.approx(power(5, -2.0, 1.0))
    assert seeds_needed(-0.02, 0.01) == seeds_needed(2.0, 1.0) == 5


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_detectable_is_where_the_power_is_reached(seeds: int) -> None:
    assert power(seeds, detectable(seeds, 0.03), 0.03) == pytest.approx(0.8, abs=1e-6)


def test_no_number_of_seeds_is_named_for_what_none_would_find() -> None:
    assert seeds_needed(0.001, 1.0) is None


@pytest.mark.parametrize("arguments", [(1, 1.0, 1.0), (5, 0.0, 1.0), (5, 1.0, 0.0)])
def test_questions_without_an_answer(arguments: tuple[int, float, float]) -> None:
    with pytest.raises(ValueError, match="two seeds"):
        power(*arguments)
