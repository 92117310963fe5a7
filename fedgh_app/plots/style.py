"""How every plot looks: colours, sizes, the axis of rounds, legends, and what the clients are called."""

import re
from collections.abc import Collection, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00")
LINES = ("-", ":", "-.")  # once round the colours
ABSENT = "#dddddd"  # where there is no value
MOST_CLIENTS = 12  # curves or matrix rows beyond this cannot be read
MOST_WITH_NUMBERS = 6  # clients; in a larger matrix no number has room
MOST_NAMES = 40  # beside an axis; of more clients only some are named
MOST_MARKED = 50  # rounds; of more, dots and bars run into each other
MOST_INCHES = 16.0
LEGEND_ROWS, LEGEND_COLUMNS = 18, 2


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def line_of(place: int) -> dict[str, Any]:
    """Colour and line style of a curve by its place among them."""
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": LINES[place // len(COLOURS) % len(LINES)]}


def dots(rounds: Sized) -> dict[str, Any]:
    """A dot at each round of a curve, unless they would run into each other."""
    return {"marker": "o", "markersize": 3.5} if len(rounds) <= MOST_MARKED else {}


def colours_of(count: int) -> list[str]:
    """The colours of so many areas: where the usual ones do not suffice, as many as there are along a rainbow."""
    if count <= len(COLOURS):
        return [*COLOURS[:count]]
    return [to_hex(colour) for colour in colormaps["turbo"](np.linspace(0, 1, count))]


def whole_numbers(most: int = 9) -> MaxNLocator:
    """Ticks at whole numbers, in steps that people count in."""
    return MaxNLocator(nbins=most, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])


def round_axis(axes: Axes, rounds: Sequence[int]) -> None:
    """Whole rounds, from the first to the last."""
    axes.set_xlabel("round")
    axes.set_xlim(min(rounds) - 0.5, max(rounds) + 0.5)
    axes.xaxis.set_major_locator(whole_numbers())


def open_frame(axes: Axes) -> None:
    """Only the two axes, and a faint grid behind what is drawn."""
    axes.set_axisbelow(True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def legend_beside(axes: Axes, title: str | None = None, handles: Sequence[Artist] = ()) -> None:
    """A legend at the right of the axes, where it hides nothing; of very many entries the first."""
    shown = [*(handles or axes.get_legend_handles_labels()[0])]
    most = LEGEND_ROWS * LEGEND_COLUMNS
    if len(shown) > most:
        shown = [*shown[: most - 1], Line2D([], [], linestyle="", label=f"and {len(shown) - most + 1} more")]
    axes.legend(
        handles=shown,
        title=title,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        handlelength=2.8,  # or a marker hides the dots of a line
        ncols=-(-len(shown) // LEGEND_ROWS),
        fontsize=8 if len(shown) > LEGEND_ROWS // 2 else 10,
    )


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
        look: Any = {"linestyle": style, "marker": marker, "markersize": 10 if marker == "_" else 4}
        look["linewidth"] = 2.2 if label == "median" else 1.2
        axes.plot(rounds, line, color=COLOURS[0], label=label, clip_on=False, **look)


def some(count: int) -> list[int]:
    """At most `MOST_NAMES` of ``count`` places from the first on, in steps that people count in: 1, 2, 5, 10, 20, …"""
    steps = (digit * 10**power for power in range(len(str(count))) for digit in (1, 2, 5))
    return [*range(0, count, next(step for step in steps if count <= step * MOST_NAMES))]


def client_of(label: str, clients: Collection[str]) -> str:
    """The client that a row of the diagnostics is of; the second update of client 3 in a round goes by ``3#2``."""
    return label if label in clients else label.rsplit("#", 1)[0]


def named(label: str, labels: Mapping[str, str]) -> str:
    """What people call a client, or its second update in a round."""
    name = client_of(label, labels)
    known = labels.get(name, name)
    return f"{known if known != name else f'client {name}'}{label.removeprefix(name).replace('#', ' #')}"


def counting(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts names as people count: client 2 before client 10."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]
