"""What the clients' updates were like: cosines between them, their weights, their conflicts."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from fedgh_app.plots import style
from fedgh_app.runs.history import Round

MOST_ROUNDS = 10
MOST_IN_ROW = 5


def cosine_matrices(history: Sequence[Round], labels: Mapping[str, str], path: Path, title: str) -> None:
    """Cosines between the clients' updates, one matrix a round (evenly chosen rounds where there are many)."""
    measured = [one for one in history if len(one.strategy.get("cosines") or ()) > 1]
    if not measured:
        return
    chosen = np.unique(np.linspace(0, len(measured) - 1, min(MOST_ROUNDS, len(measured))).round().astype(int))
    rounds = [measured[i] for i in chosen]
    rows = -(-len(rounds) // MOST_IN_ROW)
    columns = -(-len(rounds) // rows)
    matrices = [np.array(one.strategy["cosines"], dtype=float) for one in rounds]
    for matrix in matrices:
        np.fill_diagonal(matrix, np.nan)  # always 1, it would drown the rest
    largest = max([0.1, *(float(np.nanmax(np.abs(m))) for m in matrices if np.isfinite(m).any())])
    heading = f"{title}: cosines between client updates"
    figure = style.new_figure(max(2.1 * columns + 1.0, 0.09 * len(heading)), 2.25 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(rounds) :]:
        axes.set_visible(False)
    for axes, one, matrix in zip(grid.flat, rounds, matrices, strict=False):
        image = axes.imshow(matrix, vmin=-largest, vmax=largest, cmap="RdBu")
        axes.set_facecolor(style.ABSENT)
        axes.set_title(f"round {one.round}", fontsize=9)
        _name_both_sides(axes, [style.named(name, labels) for name in one.strategy["clients"]])
        if len(matrix) <= style.MOST_WITH_NUMBERS:
            _write_numbers(axes, matrix, largest)
    figure.colorbar(image, ax=grid, shrink=0.8, label="cosine (negative: conflict)")
    figure.suptitle(heading, fontsize=11)
    figure.savefig(path)


def _name_both_sides(axes: Axes, names: Sequence[str]) -> None:
    if len(names) > style.MOST_CLIENTS:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(f"{len(names)} updates", fontsize=8)
        return
    size = 6.5 if len(names) <= style.MOST_WITH_NUMBERS else 5.5
    axes.set_xticks(range(len(names)), names, fontsize=size, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.tick_params(length=2)


def _write_numbers(axes: Axes, matrix: np.ndarray, largest: float) -> None:
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):  # neither the diagonal nor a pair that was not compared
            colour = "w" if abs(value) > 0.6 * largest else "k"
            axes.text(column, row, f"{value:z.2f}", ha="center", va="center", fontsize=6.5, color=colour)


def weights_and_conflicts(history: Sequence[Round], labels: Mapping[str, str], path: Path, title: str) -> None:
    """The weight of each client's update by round, and below the share of client pairs in conflict.

    A rule without weights (a robust one) has its conflicts drawn alone; two updates of a client in one round add up.
    """
    measured = [one for one in history if one.strategy.get("c") or one.strategy.get("conflicting") is not None]
    if not measured:
        return
    rounds = [one.round for one in measured]
    weights = _weights(measured, labels)
    conflicts = any(one.strategy.get("conflicting") is not None for one in measured)
    parts = [3] * bool(weights) + [2] * conflicts
    figure = style.new_figure(7.6, 6.0 if len(parts) > 1 else 3.6)
    panels = figure.subplots(len(parts), 1, sharex=True, squeeze=False, height_ratios=parts)[:, 0]
    if weights:
        _draw_weights(panels[0], rounds, weights, labels)
    if conflicts:
        _draw_conflicts(panels[-1], rounds, measured)
    for axes in panels:
        style.open_frame(axes)
        style.legend_beside(axes)
    style.round_axis(panels[-1], rounds)
    panels[0].set_title(f"{title}: {' and '.join(['weights'] * bool(weights) + ['conflicts'] * conflicts)}")
    figure.savefig(path)


def _weights(measured: Sequence[Round], labels: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Of each client its weight in every round; NaN where it took no part."""
    weights: dict[str, np.ndarray] = {}
    for place, one in enumerate(measured):
        for label, value in one.strategy.get("c", {}).items():
            of_client = weights.setdefault(style.client_of(label, labels), np.full(len(measured), math.nan))
            of_client[place] = value if math.isnan(of_client[place]) else of_client[place] + value
    return weights


def _draw_weights(
    axes: Axes, rounds: Sequence[int], weights: Mapping[str, np.ndarray], labels: Mapping[str, str]
) -> None:
    if len(weights) > style.MOST_CLIENTS:
        by_round = np.array([*weights.values()]).T
        style.draw_spread(axes, dict(zip(rounds, by_round, strict=True)), highest="largest", lowest="smallest")
    else:
        for place, name in enumerate(sorted(weights, key=style.counting)):
            took_part = np.isfinite(weights[name])
            # A little beside each other: equal weights would hide each other.
            at = np.array(rounds) + 0.06 * (place - (len(weights) - 1) / 2)
            look = {**style.line_of(place), **style.dots(rounds)}
            axes.plot(at[took_part], weights[name][took_part], label=style.named(name, labels), **look)
    every = np.array([*weights.values()])
    if np.nanmin(every) < 0:
        axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    else:
        axes.set_ylim(0, 1.08 * float(np.nanmax(every)) or 1)
    axes.set_ylabel("weight of the client's update")


def _draw_conflicts(axes: Axes, rounds: Sequence[int], measured: Sequence[Round]) -> None:
    whole = [math.nan if (share := one.strategy.get("conflicting")) is None else 100 * share for one in measured]
    by_tensor = [
        100 * float(np.mean([*one.strategy.get("conflicting_per_tensor", {}).values()] or [0])) for one in measured
    ]
    light, dark = "#d0d0d0", "#666666"
    if len(rounds) <= style.MOST_MARKED:
        axes.bar(rounds, by_tensor, width=0.7, color=light, label="by tensor")
        axes.bar(rounds, whole, width=0.35, color=dark, label="whole model")
    else:
        axes.fill_between(rounds, by_tensor, step="mid", color=light, linewidth=0, label="by tensor")
        axes.plot(rounds, whole, color=dark, linewidth=1.2, label="whole model")
    axes.set_ylim(0, 100)
    axes.set_ylabel("client pairs\nin conflict (%)")
