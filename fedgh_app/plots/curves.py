"""What goes up or down from round to round: the headline by part and by client, the privacy spent."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fedgh_app.plots import style
from fedgh_app.runs.history import Round
from fedgh_app.words import plural

Curves = dict[str, tuple[list[int], list[float]]]  # rounds and values by the name of the curve


def part_curves(history: Sequence[Round], path: Path, title: str, metric: str, part: str) -> None:
    """The headline of each part, and their mean, by round: the server's numbers, or the clients' where it has none."""
    curves: Curves = {}
    central = any(one.evaluate.central for one in history)
    for one in history:
        measured = one.evaluate.central if central else one.evaluate.clients and one.evaluate.headline
        for name, score in {**measured.parts, "mean": measured.score}.items() if measured else ():
            _add(curves, name, one.round, score)
    if not curves:
        return
    whose = "all test images" if central else "the clients' own test images"
    _draw(curves, path, f"{title}: {plural(part)}, {whose}", metric)


def client_curves(history: Sequence[Round], labels: Mapping[str, str], path: Path, title: str, metric: str) -> None:
    """The headline on each client's own test images, by round; with many clients, their quartiles."""
    curves: Curves = {}
    for one in history:
        for name, own in one.evaluate.clients.by_client.items() if one.evaluate.clients else ():
            _add(curves, style.named(name, labels), one.round, own.score)
    if curves:
        _draw(curves, path, f"{title}: clients, own test images", metric, most=style.MOST_CLIENTS)


def epsilon(history: Sequence[Round], path: Path, title: str) -> None:
    """What the clients have spent of their privacy, by round."""
    spent = {one.round: one.privacy["epsilon"] for one in history if one.privacy}
    if not spent:
        return
    figure = style.new_figure(6.4, 3.2)
    axes = figure.subplots()
    axes.plot(list(spent), list(spent.values()), color=style.COLOURS[0], clip_on=False, **style.dots(spent))
    style.round_axis(axes, list(spent))
    delta = next(one.privacy["delta"] for one in history if one.privacy)
    axes.set_ylabel(f"ε at δ = {delta:g}")
    axes.set_ylim(bottom=0)
    style.open_frame(axes)
    axes.set_title(f"{title}: privacy spent")
    figure.savefig(path)


def _add(curves: Curves, name: str, server_round: int, value: float | None) -> None:
    """Another point of a curve; a value that could not be measured leaves a gap."""
    rounds, values = curves.setdefault(name, ([], []))
    rounds.append(server_round)
    values.append(math.nan if value is None else 100 * float(value))


def _draw(curves: Curves, path: Path, title: str, metric: str, most: float = math.inf) -> None:
    figure = style.new_figure(7.6, 4.2)
    axes = figure.subplots()
    if len(curves) > most:
        style.draw_spread(axes, _by_round(curves), highest="best", lowest="worst")
    else:
        _lines(axes, curves)
    style.round_axis(axes, [number for rounds, _ in curves.values() for number in rounds])
    axes.set_ylabel(f"{metric} (%)")
    axes.set_ylim(-1, 101)
    style.open_frame(axes)
    style.legend_beside(axes)
    axes.set_title(title)
    figure.savefig(path)


def _lines(axes: Axes, curves: Curves) -> None:
    for place, (label, (rounds, values)) in enumerate(curves.items()):
        mean = label == "mean"
        look: dict[str, Any] = {"color": "#333333", "linestyle": "--"} if mean else style.line_of(place)
        axes.plot(rounds, values, linewidth=2.6 if mean else 1.6, label=label, **look, **style.dots(rounds))


def _by_round(curves: Curves) -> dict[int, np.ndarray]:
    table: dict[int, list[float]] = {}
    for rounds, values in curves.values():
        for server_round, value in zip(rounds, values, strict=True):
            table.setdefault(server_round, []).append(value)
    return {server_round: np.array(table[server_round]) for server_round in sorted(table)}
