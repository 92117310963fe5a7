"""Which updates are too long."""

from __future__ import annotations

import pytest

from fedgh_app.grids.reply_checks import Norms
from fedgh_app.runs import storage
from fedgh_app.server.parts.outliers import Outliers


def norms(*values: float) -> dict[str, Norms]:
    return {str(place): Norms(value, 1.0) for place, value in enumerate(values)}


@pytest.mark.parametrize(
    ("values", "odd"),
    [
        ((1.0, 1.0, 101.0), ["2"]),
        ((1.0, 1.0, 99.0), []),
        ((1.0, 2.0, 3.0, 150.0, 1e30), ["4"]),  # the median is 3
        ((1.0, float("inf"), 1.0), ["1"]),
        ((0.0, 0.0, 5.0), []),  # a median of 0 says nothing
        ((1.0, 1e9), []),  # of two, nobody can say which is odd
        ((1e9,), []),
    ],
)
def test_an_update_far_above_the_median_is_odd(values: tuple[float, ...], odd: list[str]) -> None:
    assert list(Outliers(100.0).reject(norms(*values))) == odd


def test_few_updates_are_compared_with_those_accepted_last() -> None:
    seen = Outliers(100.0)
    assert [bool(seen.reject(norms(value))) for value in (1.0, 1.2, 0.9, 1e6, 1.1, 1e6)] == [
        False,
        False,
        False,
        True,
        False,
        True,
    ]
    again = Outliers(100.0)
    again.load_state_dict(storage.plain(seen.state_dict()))
    assert list(again.recent) == list(seen.recent) == [(value, 1.0) for value in (1.0, 1.2, 0.9, 1.1)]
    assert not Outliers(float("inf")).reject(norms(1.0, 1.0, 1.0, 1e30))
