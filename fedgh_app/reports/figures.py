"""The figures of a report on several settings, as SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedgh_app.plots.style import COLOURS, LINES, MOST_CLIENTS, MOST_WITH_NUMBERS, counting
from fedgh_app.reports.comparison import Difference
from fedgh_app.reports.statistics import Setting
from fedgh_app.runs.opening import Outcome

# Colours of text and axes, of backgrounds: told from all others, so that a page may put its own in their place.
INK, PAPER, FAINT = "#1c2128", "#fdfdfe", "#8b929c"
STYLE: Any = {
    "svg.fonttype": "path",  # looks alike wherever it is read
    "svg.hashsalt": "fedgh",  # and is the same bytes each time
    "font.size": 10,
    "axes.titlesize": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
WIDTH = 5.4  # inches: text can still be read at the width of a phone
MINUS = "\N{MINUS SIGN}"
MOST_SETTINGS = 8  # curves beyond this cannot be told apart


@dataclass(frozen=True, eq=False)
class Curve:
    """The headline of one setting by round, over its runs."""

    rounds: np.ndarray  # (R,) rounds that every run was evaluated after
    seconds: np.ndarray  # (R,) mean time from the start to the round's end
    mean: np.ndarray  # (R,) of the headline
    std: np.ndarray  # (R,) likewise; 0 of a single run


@dataclass(frozen=True, eq=False)
class Cosines:
    """Cosines between clients' updates, means over rounds and runs."""

    labels: tuple[str, ...]  # (K,) what each client holds, in the matrix's order
    mean: np.ndarray  # (K, K) over all rounds; NaN where two clients never trained together, and on the diagonal
    last: np.ndarray  # (K, K) of the last round alone


def curve_of(setting: Setting) -> Curve | None:
    """The setting's curve; None where no round was evaluated, as of clients that were trained alone."""
    by_run: list[dict[int, tuple[float, float]]] = []
    for run in setting.runs:
        points, clock = {}, 0.0
        for one in run.history():
            clock += one.seconds.get("total", 0.0)
            if (score := one.evaluate.headline.score) is not None:
                points[one.round] = (clock, score)
        by_run.append(points)
    rounds = sorted(set.intersection(*map(set, by_run)))
    if not rounds:
        return None
    table = np.array([[points[number] for number in rounds] for points in by_run])  # (runs, R, 2)
    std = table[:, :, 1].std(axis=0, ddof=1) if len(table) > 1 else np.zeros(len(rounds))
    return Curve(np.array(rounds), table[:, :, 0].mean(axis=0), table[:, :, 1].mean(axis=0), std)


def cosines_of(setting: Setting) -> Cosines | None:
    """The setting's cosines; None where its strategy reports none."""
    every: dict[tuple[str, str], list[float]] = {}
    last: dict[tuple[str, str], list[float]] = {}
    labels: dict[str, set[str]] = {}
    for run in setting.runs:
        measured = [one.strategy for one in run.history() if one.strategy.get("cosines")]
        for strategy in measured:
            for pair, value in _pairs(strategy):
                every.setdefault(pair, []).append(value)
                if strategy is measured[-1]:
                    last.setdefault(pair, []).append(value)
        for name in {name for pair in every for name in pair}:
            labels.setdefault(name, set()).add(_label(run, name))
    if not every:
        return None
    clients = sorted(labels, key=counting)
    # A seed that deals the images anew gives client 0 something else each time.
    named = tuple(next(iter(labels[name])) if len(labels[name]) == 1 else f"client {name}" for name in clients)
    return Cosines(named, _matrix(every, clients), _matrix(last, clients))


def _pairs(strategy: Mapping[str, Any]) -> list[tuple[tuple[str, str], float]]:
    """Cosine of each ordered pair of clients in one round; the second update of client 3 goes by ``3#2``."""
    names = [str(name).split("#")[0] for name in strategy["clients"]]
    return [
        ((first, second), float(strategy["cosines"][i][j]))
        for i, first in enumerate(names)
        for j, second in enumerate(names)
        if first != second and strategy["cosines"][i][j] is not None
    ]


def _matrix(cosines: Mapping[tuple[str, str], Sequence[float]], clients: Sequence[str]) -> np.ndarray:
    matrix = np.full((len(clients), len(clients)), np.nan)
    for (first, second), values in cosines.items():
        matrix[clients.index(first), clients.index(second)] = np.mean(values)
    return matrix


def _label(run: Outcome, client: str) -> str:
    label = run.result.clients[client].label if client in run.result.clients else client
    return f"client {client}" if label == client else label


def colour_of(place: int) -> str:
    """The colour of a setting by its place among them."""
    colour = COLOURS[place % len(COLOURS)]
    return INK if colour == "#000000" else colour  # black could not be seen on a dark page


def svg(figure: Figure) -> str:
    """The figure as an SVG document; the same figure gives the same text."""
    text = StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def outcomes(settings: Sequence[Setting], metric: str) -> Figure:
    """Every run a dot, the mean of each setting a bar through them."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.0 + 0.42 * len(settings)), layout="constrained")
        axes = figure.subplots()
        for place, setting in enumerate(settings):
            values = [100 * score for run in setting.runs if (score := run.result.score) is not None]
            colour = colour_of(place)
            # Runs with the same number would lie on top of each other.
            beside = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else [0.0] * len(values)
            axes.plot(values, place + np.array(beside), "o", color=colour, alpha=0.75, markersize=5.5, linewidth=0)
            if values:
                axes.plot([np.mean(values)] * 2, [place - 0.32, place + 0.32], color=INK, linewidth=1.8)
        _row_for_each(axes, [setting.title for setting in settings])
        axes.set_xlabel(f"{metric} (%)")
    return figure


def forest(differences: Mapping[str, Difference], baseline: str, metric: str) -> Figure:
    """Differences from the baseline with their confidence intervals."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.1 + 0.42 * len(differences)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=FAINT, linewidth=1.2, linestyle="--")
        for place, gained in enumerate(differences.values()):
            if gained.mean is None:
                continue
            if gained.low is not None and gained.high is not None:
                axes.plot([100 * gained.low, 100 * gained.high], [place] * 2, color=INK, linewidth=1.8)
            axes.plot(100 * gained.mean, place, "o", color=COLOURS[0], markersize=7)
        _row_for_each(axes, [*differences])
        axes.set_xlabel(f"{metric} minus that of {_short(baseline)} (percentage points)")
    return figure


def _row_for_each(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.grid(axis="x", alpha=0.35)
    axes.tick_params(axis="y", length=0)


def learning_curves(curves: Mapping[tuple[int, str], Curve], metric: str, over: str) -> Figure:
    """Mean headline ± a standard deviation over ``rounds`` or ``seconds``, by place (for the colour) and name."""
    with matplotlib.rc_context(STYLE):
        columns = min(len(curves), max(1, 48 // (6 + max(len(_short(name)) for _, name in curves))))
        figure = Figure(figsize=(WIDTH, 3.7 + 0.2 * -(-len(curves) // columns)), layout="constrained")
        axes = figure.subplots()
        for (place, name), curve in curves.items():
            along = getattr(curve, over)
            colour, line = colour_of(place), LINES[place // len(COLOURS) % len(LINES)]
            mean, std = 100 * curve.mean, 100 * curve.std
            axes.fill_between(along, mean - std, mean + std, color=colour, alpha=0.16, linewidth=0)
            few: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(along) <= 30 else {}
            axes.plot(along, mean, color=colour, linestyle=line, linewidth=1.8, label=_short(name), **few)
        axes.set_ylabel(f"{metric} (%)")
        axes.set_ylim(bottom=0)
        if over == "rounds":
            axes.set_xlabel("round")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        else:
            axes.set_xlabel("seconds since the start")
            axes.set_xlim(left=0)
        axes.grid(alpha=0.35)
        figure.legend(loc="outside lower center", ncols=columns, fontsize=9)
    return figure


def cosine_matrix(cosines: Cosines, name: str, when: str, largest: float) -> Figure:
    """Cosines between clients' updates: ``mean`` over the rounds, or of the ``last``; red is conflict."""
    with matplotlib.rc_context(STYLE):
        matrix = getattr(cosines, when)
        count = len(cosines.labels)
        few = count <= MOST_CLIENTS
        side = 2.1 + (0.2 * count if few else 1.6)
        figure = Figure(figsize=(side + 0.7, side), layout="constrained")
        axes = figure.subplots()
        axes.spines[:].set_visible(False)
        axes.set_facecolor("#d4d7db")
        known = np.ma.masked_invalid(matrix)
        mesh = axes.pcolormesh(known, cmap="RdBu", vmin=-largest, vmax=largest, rasterized=not few)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        ticks = (np.arange(count) + 0.5).tolist() if few else []
        axes.set_xticks(ticks, cosines.labels if few else [], rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(ticks, cosines.labels if few else [])
        axes.tick_params(length=0, labelsize=8.5)
        if count <= MOST_WITH_NUMBERS:
            for (row, column), value in np.ndenumerate(matrix):
                if np.isfinite(value):
                    colour = "white" if abs(value) > 0.6 * largest else "black"
                    text = f"{value:z.2f}".replace("-", MINUS)
                    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=colour)
        axes.set_title(_short(name))
        figure.colorbar(mesh, ax=axes, shrink=0.8, label="cosine")
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 34 else f"{name[:33]}…"
