"""What the figures of a report show must be readable."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fedgh_app.reports.comparison import Difference
from fedgh_app.reports.figures import forest


@pytest.mark.parametrize("name", ["FedGH", "FedGH, granularity layer, scheme pairwise, rescale norm"])
def test_what_differences_are_of_is_readable_in_full(name: str) -> None:
    figure = forest({name: Difference(3, 0.01, -0.02, 0.04)}, "FedAvg, fraction_train 0.5, equal_weights", "PCK@0.2")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, whole = canvas.get_renderer(), figure.bbox
    texts = [*figure.texts, figure._supxlabel, *(label for axes in figure.axes for label in axes.get_yticklabels())]
    shown = [text for text in texts if text is not None and text.get_text()]
    assert any(text.get_text().endswith("in percentage points") for text in shown)
    for text in shown:
        box = text.get_window_extent(renderer)
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0, text.get_text()
