"""Statistics against numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedgh_app.reports.comparison import Difference, adjusted, difference, holm


def against_zero(*gained: float) -> Difference:
    return difference(dict(enumerate(gained)), dict.fromkeys(range(len(gained)), 0.0))


def test_four_pairs_as_a_textbook_has_them() -> None:
    """Differences 1, 2, 3, 4: t = 2.5 / (1.2910 / 2) = 3.873, 3 degrees of freedom, whose 97.5 % point is 3.1824."""
    found = against_zero(1, 2, 3, 4)
    assert (found.pairs, found.mean) == (4, 2.5)
    half = 3.182446305 * math.sqrt(5 / 3) / 2
    assert (found.low, found.high) == (pytest.approx(2.5 - half), pytest.approx(2.5 + half))
    t = 2.5 / (math.sqrt(5 / 3) / 2)
    # Student's t with 3 degrees of freedom has its distribution function in closed form.
    x = t / math.sqrt(3)
    assert found.p == pytest.approx(1 - 2 / math.pi * (x / (1 + x * x) + math.atan(x)))
    assert found.p == pytest.approx(0.03047, abs=1e-5)


def test_two_pairs_say_next_to_nothing() -> None:
    """With one degree of freedom t is Cauchy's: p = 1 - 2/pi atan(2), and the interval is 12.7 standard errors wide."""
    found = against_zero(1, 3)
    assert found.p == pytest.approx(1 - 2 / math.pi * math.atan(2))
    assert (found.low, found.high) == (pytest.approx(2 - 12.7062, abs=1e-3), pytest.approx(2 + 12.7062, abs=1e-3))
    assert found.p_wilcoxon is None


def test_it_is_the_paired_test_not_the_other() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(50, 10, 8)
    better = base + rng.normal(1, 0.5, 8)
    found = difference(dict(enumerate(better)), dict(enumerate(base)))
    assert found.p == pytest.approx(stats.ttest_rel(better, base).pvalue)
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(better, base).pvalue)
    assert stats.ttest_ind(better, base).pvalue > 0.5 > 0.05 > (found.p or 1)


def test_ranks_where_all_six_pairs_agree() -> None:
    """Of 2^6 ways to give signs, one is all plus and one all minus."""
    assert against_zero(1, 2, 3, 4, 5, 6).p_wilcoxon == pytest.approx(2 / 64)
    assert against_zero(1, 2, 3, 4, 5).p_wilcoxon is None


def test_only_shared_seeds_are_pairs() -> None:
    found = difference({0: 1.0, 1: 2.0, 7: 100.0}, {1: 1.0, 0: 0.5, 9: 0.0})
    assert (found.pairs, found.mean) == (2, 0.75)
    assert difference({0: 1.0}, {1: 1.0}) == Difference(0)
    assert difference({0: 1.5}, {0: 1.0}) == Difference(1, 0.5)


def test_the_same_difference_each_time_has_no_test() -> None:
    found = difference({0: 0.6, 1: 0.7, 2: 0.8}, {0: 0.5, 1: 0.6, 2: 0.7})
    assert found.p is None and found.low == found.mean == found.high == pytest.approx(0.1)


def test_holm_as_worked_by_hand() -> None:
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04, which may not fall again."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_has_no_test_counts_for_nobody() -> None:
    found = adjusted(
        {"a": Difference(4, 1.0, 0.0, 2.0, 0.03), "b": Difference(1, 1.0), "c": Difference(4, 1, 0, 2, 0.02)}
    )
    assert [one.p_holm for one in found.values()] == [pytest.approx(0.04), None, pytest.approx(0.04)]


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    held = [(found := against_zero(*rng.normal(0.3, 1.0, 5))).low <= 0.3 <= found.high for _ in range(800)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)
