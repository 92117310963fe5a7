"""What goes up or down from round to round: keypoints, clients, the privacy spent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fedgh_app.plots.names import named
from fedgh_app.plots.spread import draw_spread
from fedgh_app.plots.style import (
    COLOURS,
    MOST_CLIENTS,
    dots,
    legend_beside,
    line_of,
    new_figure,
    open_frame,
    round_axis,
)
from fedgh_app.runs.history import Evaluations, Round

Curves = dict[str, tuple[list[int], list[float]]]  # rounds and values by the name of the curve


def keypoint_curves(history: Sequence[Round], path: Path, title: str, metric: str) -> None:
    """PCK of each keypoint, and their mean, by round."""
    curves: Curves = {}
    central = any(this.evaluate.central for this in history)
    for this in history:
        chosen = Evaluations(central=this.evaluate.central) if central else this.evaluate
        if chosen.central is None and chosen.clients is None:
            continue
        for name, value in {**chosen.headline.parts, "mean": chosen.headline.score}.items():
            _add(curves, name, this.round, value)
    if not curves:
        return
    figure = new_figure(7.6, 4.2)
    axes = figure.subplots()
    _lines(axes, curves)
    whose = "all test images" if central else "the clients' own test images"
    _finish(axes, curves, f"{title}: keypoints, {whose}", metric)
    figure.savefig(path)


def client_curves(history: Sequence[Round], labels: Mapping[str, str], path: Path, title: str, metric: str) -> None:
    """Mean PCK on each client's own test images, by round; with many clients, their quartiles."""
    curves: Curves = {}
    for this in history:
        for name, found in this.evaluate.clients.by_client.items() if this.evaluate.clients else ():
            _add(curves, named(name, labels), this.round, found.score)
    if not curves:
        return
    figure = new_figure(7.6, 4.2)
    axes = figure.subplots()
    if len(curves) > MOST_CLIENTS:
        draw_spread(axes, _by_round(curves), highest="best", lowest="worst")
    else:
        _lines(axes, curves)
    _finish(axes, curves, f"{title}: clients, own test images", metric)
    figure.savefig(path)


def epsilon(history: Sequence[Round], path: Path, title: str) -> None:
    """What the clients have spent of their privacy, by round."""
    spent = {this.round: this.privacy["epsilon"] for this in history if this.privacy}
    if not spent:
        return
    figure = new_figure(6.4, 3.2)
    axes = figure.subplots()
    axes.plot(list(spent), list(spent.values()), color=COLOURS[0], clip_on=False, **dots(spent))
    round_axis(axes, list(spent))
    delta = next(this.privacy["delta"] for this in history if this.privacy)
    axes.set_ylabel(f"ε at δ = {delta:g}")
    axes.set_ylim(bottom=0)
    open_frame(axes)
    axes.set_title(f"{title}: privacy spent")
    figure.savefig(path)


def _add(curves: Curves, name: str, server_round: int, value: float | None) -> None:
    """Another point of a curve; a value that could not be measured leaves a gap."""
    rounds, values = curves.setdefault(name, ([], []))
    rounds.append(server_round)
    values.append(math.nan if value is None else 100 * float(value))


def _lines(axes: Axes, curves: Curves) -> None:
    for place, (label, (rounds, values)) in enumerate(curves.items()):
        mean = label == "mean"
        style: dict[str, Any] = {"color": "#333333", "linestyle": "--"} if mean else line_of(place)
        axes.plot(rounds, values, linewidth=2.6 if mean else 1.6, label=label, **style, **dots(rounds))


def _finish(axes: Axes, curves: Curves, title: str, metric: str) -> None:
    round_axis(axes, [number for rounds, _ in curves.values() for number in rounds])
    axes.set_ylabel(f"{metric} (%)")
    axes.set_ylim(-1, 101)
    open_frame(axes)
    legend_beside(axes)
    axes.set_title(title)


def _by_round(curves: Curves) -> dict[int, np.ndarray]:
    found: dict[int, list[float]] = {}
    for rounds, values in curves.values():
        for server_round, value in zip(rounds, values, strict=True):
            found.setdefault(server_round, []).append(value)
    return {server_round: np.array(found[server_round]) for server_round in sorted(found)}
