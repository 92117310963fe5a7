"""Which clients are named, and what a legend lists."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from fedgh_app.plots.style import LEGEND_COLUMNS, LEGEND_ROWS, MOST_NAMES, colours_of, legend_beside, some


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0]), (40, [*range(40)]), (41, [*range(0, 41, 2)]), (1000, [*range(0, 1000, 50)]), (9999, None)],
)
def test_of_many_clients_some_are_named_in_even_steps(count: int, expected: list[int] | None) -> None:
    assert some(count) == (expected or [*range(0, count, 500)])
    assert len(some(count)) <= MOST_NAMES


@pytest.mark.parametrize("count", [1, 8, 18, 36, 37, 300])
def test_a_legend_lies_beside_the_axes_within_the_figure(count: int) -> None:
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    axes = figure.subplots()
    for number in range(count):
        axes.plot([0, 1], [0, number], label=f"client {number}")
    legend_beside(axes)
    figure.draw_without_rendering()
    legend = axes.get_legend()
    box, frame = legend.get_window_extent(), axes.get_window_extent()
    assert box.x0 >= frame.x1
    assert box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1
    texts = [text.get_text() for text in legend.get_texts()]
    most = LEGEND_ROWS * LEGEND_COLUMNS
    assert len(texts) == min(count, most)
    assert texts[-1] == (f"client {count - 1}" if count <= most else f"and {count - most + 1} more")


def test_more_areas_than_colours_have_one_each() -> None:
    for count in (1, 8, 9, 40):
        assert len(set(colours_of(count))) == count
