"""Many clients in one picture: their quartiles, and how far the outermost lie apart."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from fedgh_app.plots.style import COLOURS, MOST_MARKED


def draw_spread(axes: Axes, values: Mapping[int, np.ndarray], *, highest: str, lowest: str) -> None:
    """Draw what many clients have each round: by round, in order, one value a client; NaN where a client has none."""
    rounds = [number for number, of_clients in values.items() if np.isfinite(of_clients).any()]
    if not rounds:
        return
    percentiles = [np.nanpercentile(values[number], [100, 75, 50, 25, 0]) for number in rounds]
    top, upper, median, lower, bottom = np.array(percentiles).T
    axes.fill_between(rounds, bottom, top, color=COLOURS[0], alpha=0.12, linewidth=0)
    axes.fill_between(rounds, lower, upper, color=COLOURS[0], alpha=0.25, linewidth=0)
    for line, label, style, marker in (
        (top, highest, ":", "^"),
        (upper, "upper quartile", "--", ""),
        (median, "median", "-", "o"),
        (lower, "lower quartile", "--", ""),
        (bottom, lowest, ":", "v"),
    ):
        if len(rounds) > MOST_MARKED:
            marker = ""
        elif len(rounds) == 1:  # of a single round there is no line
            marker = marker or "_"
        axes.plot(
            rounds,
            line,
            color=COLOURS[0],
            linestyle=style,
            linewidth=2.2 if label == "median" else 1.2,
            marker=marker,
            markersize=10 if marker == "_" else 4,
            label=label,
            clip_on=False,
        )
