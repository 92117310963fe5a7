"""A row for each client, a column for each round: how late its updates came, which cluster it was in."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch

from fedgh_app.plots import style
from fedgh_app.runs.history import Round

HIGHEST = 10.0  # inches
BAR = 0.2  # inches


def staleness(history: Sequence[Round], labels: Mapping[str, str], path: Path, title: str) -> None:
    """How many aggregations late the clients' updates came by round, of two the later; above, how many were dropped."""
    ages = {
        (style.client_of(label, labels), one.round): age
        for one in history
        for label, age in sorted(one.strategy.get("staleness", {}).items(), key=lambda item: item[1])
    }
    if not ages:
        return
    clients, rounds, table = _by_client_and_round(ages, labels)
    dropped = {one.round: one.strategy.get("dropped", 0) for one in history if one.round in rounds}
    figure = _figure_for(clients, rounds)
    above = any(dropped.values())
    panels = figure.subplots(1 + above, 1, sharex=True, squeeze=False, height_ratios=[1, 4] if above else None)[:, 0]
    axes = panels[-1]
    image = _draw_table(axes, table, clients, rounds, labels, cmap="YlOrBr", vmin=0, vmax=max(2, *ages.values()))
    if len(clients) <= style.MOST_CLIENTS and len(rounds) <= 30:
        for (client, number), age in ages.items():
            colour = "w" if age > 0.6 * max(2, *ages.values()) else "k"
            axes.text(number, clients.index(client), f"{age}", ha="center", va="center", fontsize=7, color=colour)
    wide = figure.get_figheight() / BAR
    figure.colorbar(image, ax=axes, aspect=wide, label="aggregations late", ticks=style.whole_numbers())
    if above:
        panels[0].bar(list(dropped), list(dropped.values()), width=0.6, color="#555555")
        panels[0].set_ylabel("dropped")
        panels[0].yaxis.set_major_locator(style.whole_numbers(3))
        panels[0].spines[["top", "right"]].set_visible(False)
        panels[0].tick_params(which="both", bottom=False, labelbottom=False)
    panels[0].set_title(f"{title}: staleness of the updates (grey: none came)")
    figure.savefig(path)


def clusters(history: Sequence[Round], labels: Mapping[str, str], path: Path, title: str) -> None:
    """Which cluster each client was in, by round."""
    names = sorted({name for one in history for name in one.clusters}, key=style.counting)
    if not names:
        return
    membership = {
        (client, one.round): names.index(name)
        for one in history
        for name, members in one.clusters.items()
        for client in members
    }
    clients, rounds, table = _by_client_and_round(membership, labels)
    colours = style.colours_of(len(names))
    figure = _figure_for(clients, rounds)
    axes = figure.subplots()
    _draw_table(axes, table, clients, rounds, labels, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(names) - 0.5)
    patches = [Patch(color=colour, label=name) for name, colour in zip(names, colours, strict=True)]
    style.legend_beside(axes, "cluster", patches)
    axes.set_title(f"{title}: clusters of clients")
    figure.savefig(path)


def _by_client_and_round(
    values: Mapping[tuple[str, int], float], labels: Mapping[str, str]
) -> tuple[list[str], list[int], np.ndarray]:
    """All clients in counting order, all rounds from the first to the last, and the (clients, rounds) table."""
    clients = sorted({*labels, *(client for client, _ in values)}, key=style.counting)
    numbers = [number for _, number in values]
    rounds = list(range(min(numbers), max(numbers) + 1))
    table = np.full((len(clients), len(rounds)), np.nan)
    rows = {client: row for row, client in enumerate(clients)}
    for (client, number), value in values.items():
        table[rows[client], number - rounds[0]] = value
    return clients, rounds, table


def _figure_for(clients: Sequence[str], rounds: Sequence[int]) -> Figure:
    width = min(style.MOST_INCHES, max(6.4, 2.5 + 0.3 * len(rounds)))
    return style.new_figure(width, min(HIGHEST, max(3.2, 1.6 + 0.32 * len(clients))))


def _draw_table(
    axes: Axes,
    table: np.ndarray,
    clients: Sequence[str],
    rounds: Sequence[int],
    labels: Mapping[str, str],
    **colours: Any,
) -> AxesImage:
    """Draw a (clients, rounds) table, grey where it holds nothing."""
    edges = (rounds[0] - 0.5, rounds[-1] + 0.5, len(clients) - 0.5, -0.5)
    image = axes.imshow(table, aspect="auto", interpolation="nearest", extent=edges, **colours)
    axes.set_facecolor(style.ABSENT)
    places = style.some(len(clients))
    axes.set_yticks(places, [style.named(clients[place], labels) for place in places], fontsize=8)
    if len(clients) <= style.MOST_NAMES:  # lines between more rows or columns would hide them
        axes.set_yticks(np.arange(len(clients) + 1) - 0.5, minor=True)
    if len(rounds) <= style.MOST_MARKED:
        axes.set_xticks(np.arange(len(rounds) + 1) + rounds[0] - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.0)
    axes.tick_params(which="both", length=0)
    style.round_axis(axes, rounds)
    return image
