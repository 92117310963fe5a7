"""Who holds what."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedgh_app.plots import style


def holdings(
    held: Sequence[Mapping[str, int]], labels: Sequence[str], attribute: str | None, path: Path, title: str
) -> None:
    """Training images of each client, stacked by the value of ``attribute``; ``held`` counts them, client by client."""
    kinds = sorted(set().union(*held), key=style.counting)
    figure = style.new_figure(min(style.MOST_INCHES, max(5.0, 0.45 * len(held) + 2.5)), 4.0)
    axes = figure.subplots()
    heights = np.array([[counts.get(kind, 0) for counts in held] for kind in kinds], dtype=float)
    colours = style.colours_of(len(kinds))
    if len(held) <= style.MOST_NAMES:
        below = np.zeros(len(held))
        for kind, row, colour in zip(kinds, heights, colours, strict=True):
            axes.bar(range(len(held)), row, bottom=below, label=kind, color=colour)
            below += row
    else:  # a bar each would be thinner than a pixel, and take minutes to draw
        edges = np.arange(len(held) + 1) - 0.5
        steps = np.concatenate([heights, heights[:, -1:]], axis=1)
        axes.stackplot(edges, steps, labels=kinds, colors=colours, step="post", antialiased=False, linewidth=0)
    axes.set_xlim(-0.7, len(held) - 0.3)
    axes.set_ylim(0, 1.08 * heights.sum(axis=0).max())
    axes.yaxis.set_major_locator(style.whole_numbers())
    places = style.some(len(held))
    slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(held) > 5 else {}
    axes.set_xticks(places, [labels[place] for place in places], **slanted)
    axes.set_ylabel("training images")
    axes.spines[["top", "right"]].set_visible(False)
    style.legend_beside(axes, attribute)
    axes.set_title(f"{title}: who holds what")
    figure.savefig(path)
