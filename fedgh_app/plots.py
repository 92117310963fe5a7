"""The pictures of a run, drawn from its history at the end."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from fedgh_app import partition
from fedgh_app.federation import Round
from fedgh_app.outcome import headline
from fedgh_app.partition import Dealt
from fedgh_app.pose.batches import Batches
from fedgh_app.pose.cache import CropCache
from fedgh_app.pose.decoding import Decode
from fedgh_app.pose.drawing import LEGEND, contact_sheet, draw_comparison
from fedgh_app.pose.images import read_image, write_image
from fedgh_app.pose.training import Permutation, find_keypoints

matplotlib.use("Agg")

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00")
LINES = ("-", ":", "-.")  # once round the colours
MOST_CLIENTS = 12  # curves or matrix rows beyond this cannot be read
MOST_ROUNDS = 10
MOST_IN_LEGEND = 8
MOST_NAMES = 40  # beside an axis; of more clients only some are named
MOST_INCHES = 16.0

Curves = dict[str, tuple[list[int], list[float]]]  # rounds and values by the name of the curve


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _curves(axes: Any, curves: Curves, metric: str) -> None:
    for place, (label, (rounds, values)) in enumerate(curves.items()):
        mean = label == "mean"
        axes.plot(
            rounds,
            100 * np.array(values, dtype=float),
            marker="o",
            markersize=3.5,
            linewidth=2.6 if mean else 1.6,
            color="#333333" if mean else COLOURS[place % len(COLOURS)],
            linestyle="--" if mean else LINES[place // len(COLOURS) % len(LINES)],
            label=label,
        )
    _round_axis(axes, [number for rounds, _ in curves.values() for number in rounds])
    axes.set_ylabel(f"{metric} (%)")
    axes.set_ylim(0, 101)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) <= MOST_IN_LEGEND:
        axes.legend(loc="best", framealpha=0.8, edgecolor="none")
    else:  # beside the curves, which it would hide
        axes.figure.set_figwidth(8.4)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _round_axis(axes: Any, rounds: Sequence[int]) -> None:
    axes.set_xlabel("round")
    axes.set_xlim(min(rounds) - 0.5, max(rounds) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def keypoint_curves(history: Sequence[Round], path: Path, title: str, metric: str) -> None:
    """PCK of each keypoint, and their mean, by round."""
    curves: Curves = {}
    where = "central" if any("central" in this.evaluate for this in history) else "clients"
    for this in history:
        found = headline({where: this.evaluate.get(where)})
        if not found:
            continue
        for name, value in {**found.get("per_keypoint", {}), "mean": found.get("pck")}.items():
            rounds, values = curves.setdefault(name, ([], []))
            rounds.append(this.round)
            values.append(_number(value))
    if not curves:
        return
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    _curves(axes, curves, metric)
    whose = "all test images" if where == "central" else "the clients' own test images"
    axes.set_title(f"{title}: keypoints, {whose}")
    figure.savefig(path)


def client_curves(history: Sequence[Round], labels: Mapping[str, str], path: Path, title: str, metric: str) -> None:
    """Mean PCK on each client's own test images, by round; with many clients, their quartiles."""
    curves: Curves = {}
    for this in history:
        for name, found in this.evaluate.get("clients", {}).get("by_client", {}).items():
            rounds, values = curves.setdefault(_named(name, labels), ([], []))
            rounds.append(this.round)
            values.append(_number(found.get("pck")))
    if not curves:
        return
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    if len(curves) > MOST_CLIENTS:
        curves = _quartiles(curves)
    _curves(axes, curves, metric)
    axes.set_title(f"{title}: clients, own test images")
    figure.savefig(path)


def _quartiles(curves: Curves) -> Curves:
    by_round: dict[int, list[float]] = {}
    for rounds, values in curves.values():
        for server_round, value in zip(rounds, values, strict=True):
            by_round.setdefault(server_round, []).append(value)
    rounds = sorted(by_round)
    levels = {"best": 100, "upper quartile": 75, "median": 50, "lower quartile": 25, "worst": 0}
    return {
        name: (rounds, [float(np.nanpercentile(by_round[r], level)) for r in rounds]) for name, level in levels.items()
    }


def _number(value: float | None) -> float:
    """A value that could not be measured leaves a gap."""
    return math.nan if value is None else float(value)


def _client(label: str, clients: Collection[str]) -> str:
    """The client that a row of the diagnostics is of; the second update of client 3 in a round goes by ``3#2``."""
    return label if label in clients else label.rsplit("#", 1)[0]


def _named(label: str, labels: Mapping[str, str]) -> str:
    """What people call a client, or its second update in a round."""
    name = _client(label, labels)
    known = labels.get(name, name)
    return f"{known if known != name else f'client {name}'}{label.removeprefix(name).replace('#', ' #')}"


def cosine_matrices(history: Sequence[Round], labels: Mapping[str, str], path: Path, title: str) -> None:
    """Cosines between the clients' updates, one matrix a round (evenly chosen rounds where there are many)."""
    measured = [this for this in history if this.strategy.get("cosines")]
    if not measured:
        return
    chosen = np.unique(np.linspace(0, len(measured) - 1, min(MOST_ROUNDS, len(measured))).round().astype(int))
    rounds = [measured[i] for i in chosen]
    columns = min(5, len(rounds))
    rows = -(-len(rounds) // columns)
    matrices = [np.array(this.strategy["cosines"], dtype=float) for this in rounds]
    for matrix in matrices:
        np.fill_diagonal(matrix, np.nan)  # always 1, it would drown the rest
    largest = max([0.1, *(float(np.nanmax(np.abs(m))) for m in matrices if np.isfinite(m).any())])
    figure = _figure(2.1 * columns + 1.0, 2.25 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(rounds) :]:
        axes.set_visible(False)
    for axes, this, matrix in zip(grid.flat, rounds, matrices, strict=False):
        names = [_named(name, labels) for name in this.strategy["clients"]]
        image = axes.imshow(matrix, vmin=-largest, vmax=largest, cmap="RdBu")
        axes.set_facecolor("#dddddd")
        axes.set_title(f"round {this.round}", fontsize=9)
        few = len(names) <= 6
        axes.set_xticks(range(len(names)) if few else [], names if few else [], fontsize=6.5, rotation=45)
        axes.set_yticks(range(len(names)) if few else [], names if few else [], fontsize=6.5)
        if few:
            for (row, column), value in np.ndenumerate(matrix):
                if np.isfinite(value):  # neither the diagonal nor a pair that was not compared
                    colour = "w" if abs(value) > 0.6 * largest else "k"
                    axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=colour)
    figure.colorbar(image, ax=grid, shrink=0.8, label="cosine (negative: conflict)")
    figure.suptitle(f"{title}: cosines between client updates", fontsize=11)
    figure.savefig(path)


def weight_bars(history: Sequence[Round], labels: Mapping[str, str], path: Path, title: str) -> None:
    """The weight of each client's update by round, and the share of client pairs in conflict.

    A rule without weights (a robust one) has its conflicts drawn alone; two updates of a client in one round add up.
    """
    measured = [this for this in history if this.strategy.get("c") or this.strategy.get("conflicting") is not None]
    if not measured:
        return
    rounds = [this.round for this in measured]
    weights: dict[str, list[float]] = {}
    for place, this in enumerate(measured):
        for label, value in this.strategy.get("c", {}).items():
            of_client = weights.setdefault(_client(label, labels), [math.nan] * len(measured))
            of_client[place] = value if math.isnan(of_client[place]) else of_client[place] + value
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    _round_axis(axes, rounds)
    if weights:
        _weight_lines(axes, rounds, weights, labels)
    else:
        axes.yaxis.set_visible(False)
    conflicts = np.array([_number(this.strategy.get("conflicting")) for this in measured])
    if np.isfinite(conflicts).any():
        other = axes.twinx()
        by_tensor = [np.mean([*this.strategy.get("conflicting_per_tensor", {}).values()] or [0]) for this in measured]
        other.bar(
            rounds, [100 * float(v) for v in by_tensor], width=0.6, color="#999999", alpha=0.25, label="by tensor"
        )
        other.bar(rounds, 100 * conflicts, width=0.3, color="#555555", alpha=0.5, label="whole model")
        other.set_ylabel("client pairs in conflict (%, bars)")
        other.set_ylim(0, 100)
        other.legend(frameon=False, fontsize=8, loc="upper right", title="conflicts (right axis)", title_fontsize=8)
    axes.set_title(f"{title}: {'weights and conflicts' if weights else 'conflicts'}")
    figure.savefig(path)


def _weight_lines(axes: Any, rounds: Sequence[int], weights: Mapping[str, list[float]], labels: Any) -> None:
    if len(weights) <= MOST_CLIENTS:
        for place, name in enumerate(sorted(weights, key=_counting)):
            colour = COLOURS[place % len(COLOURS)]
            values = np.array(weights[name])
            took_part = np.isfinite(values)
            # A little beside each other: equal weights would hide each other.
            at = np.array(rounds) + 0.06 * (place - (len(weights) - 1) / 2)
            style = {"marker": "o", "markersize": 3.5, "color": colour, "label": _named(name, labels)}
            axes.plot(at[took_part], values[took_part], **style)
    else:
        by_round = np.array([*weights.values()])
        for name, level, colour in zip(("largest", "median", "smallest"), (100, 50, 0), COLOURS, strict=False):
            line = np.nanpercentile(by_round, level, axis=0)
            axes.plot(rounds, line, marker="o", markersize=3.5, linestyle="", color=colour, label=name)
    axes.set_ylabel("weight of the client's update")
    axes.legend(frameon=False, fontsize=8, loc="upper left", title="weight (left axis)", title_fontsize=8)
    values = np.concatenate([*weights.values()])
    lowest, highest = float(np.nanmin(values)), float(np.nanmax(values))
    axes.set_ylim(min(0.0, 1.2 * lowest), 1.5 * max(highest, 0.1))  # room for the legends


def staleness(history: Sequence[Round], labels: Mapping[str, str], path: Path, title: str) -> None:
    """How old the updates were that the server took from each client by round; above, how many it dropped as too old.

    Age is the number of aggregations between start and arrival. Of two updates of a client in one round the older
    counts.
    """
    ages = {
        (_client(label, labels), this.round): age
        for this in history
        for label, age in sorted(this.strategy.get("staleness", {}).items(), key=lambda item: item[1])
    }
    if not ages:
        return
    clients, rounds, table = _by_client_and_round(ages, labels)
    dropped = {this.round: this.strategy.get("dropped", 0) for this in history if this.round in rounds}
    figure = _grid_figure(clients, rounds)
    above = any(dropped.values())
    panels = figure.subplots(1 + above, 1, sharex=True, squeeze=False, height_ratios=[1, 4] if above else None)[:, 0]
    axes = panels[-1]
    image = _client_grid(axes, table, clients, rounds, labels, cmap="YlOrBr", vmin=0, vmax=max(2, *ages.values()))
    if len(clients) <= MOST_CLIENTS and len(rounds) <= 30:
        for (client, number), age in ages.items():
            colour = "w" if age > 0.6 * max(2, *ages.values()) else "k"
            axes.text(number, clients.index(client), f"{age}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axes, label="aggregations late", ticks=MaxNLocator(integer=True))
    if above:
        panels[0].bar(list(dropped), list(dropped.values()), width=0.6, color="#555555")
        panels[0].set_ylabel("dropped")
        panels[0].yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
        panels[0].spines[["top", "right"]].set_visible(False)
        panels[0].tick_params(labelbottom=False)
    panels[0].set_title(f"{title}: staleness of the updates (grey: none came)")
    figure.savefig(path)


def clusters(history: Sequence[Round], labels: Mapping[str, str], path: Path, title: str) -> None:
    """Which cluster each client was in, by round."""
    names = sorted({name for this in history for name in this.clusters}, key=_counting)
    if not names:
        return
    membership = {
        (client, this.round): names.index(name)
        for this in history
        for name, members in this.clusters.items()
        for client in members
    }
    clients, rounds, table = _by_client_and_round(membership, labels)
    colours = [*COLOURS[: len(names)]]
    if len(names) > len(COLOURS):
        colours = [to_hex(colour) for colour in colormaps["turbo"](np.linspace(0, 1, len(names)))]
    figure = _grid_figure(clients, rounds)
    axes = figure.subplots()
    _client_grid(axes, table, clients, rounds, labels, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(names) - 0.5)
    patches = [Patch(color=colour, label=name) for name, colour in zip(names, colours, strict=True)]
    axes.legend(handles=patches, title="cluster", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_title(f"{title}: clusters of clients")
    figure.savefig(path)


def epsilon(history: Sequence[Round], path: Path, title: str) -> None:
    """What the clients have spent of their privacy, by round."""
    spent = {this.round: this.privacy["epsilon"] for this in history if this.privacy}
    if not spent:
        return
    figure = _figure(6.4, 3.2)
    axes = figure.subplots()
    axes.plot(list(spent), list(spent.values()), color=COLOURS[0], marker="o", markersize=3.5)
    _round_axis(axes, list(spent))
    delta = next(this.privacy["delta"] for this in history if this.privacy)
    axes.set_ylabel(f"ε at δ = {delta:g}")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{title}: privacy spent")
    figure.savefig(path)


def _counting(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts names as people count: client 2 before client 10."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]


def _by_client_and_round(
    values: Mapping[tuple[str, int], float], labels: Mapping[str, str]
) -> tuple[list[str], list[int], np.ndarray]:
    """All clients in counting order, all rounds from the first to the last, and the (clients, rounds) table."""
    clients = sorted({*labels, *(client for client, _ in values)}, key=_counting)
    numbers = [number for _, number in values]
    rounds = list(range(min(numbers), max(numbers) + 1))
    table = np.full((len(clients), len(rounds)), np.nan)
    rows = {client: row for row, client in enumerate(clients)}
    for (client, number), value in values.items():
        table[rows[client], number - rounds[0]] = value
    return clients, rounds, table


def _grid_figure(clients: Sequence[str], rounds: Sequence[int]) -> Figure:
    return _figure(min(MOST_INCHES, max(6.4, 2.5 + 0.3 * len(rounds))), min(14.0, max(3.2, 1.6 + 0.32 * len(clients))))


def _some(count: int) -> list[int]:
    """At most `MOST_NAMES` of ``count`` places, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_NAMES)).round().astype(int)).tolist()


def _client_grid(
    axes: Any,
    table: np.ndarray,
    clients: Sequence[str],
    rounds: Sequence[int],
    labels: Mapping[str, str],
    **colours: Any,
) -> Any:
    """Draw a (clients, rounds) table, grey where it holds nothing."""
    edges = (rounds[0] - 0.5, rounds[-1] + 0.5, len(clients) - 0.5, -0.5)
    image = axes.imshow(table, aspect="auto", interpolation="nearest", extent=edges, **colours)
    axes.set_facecolor("#dddddd")
    named = _some(len(clients))
    axes.set_yticks(named, [_named(clients[place], labels) for place in named], fontsize=8)
    if len(clients) <= MOST_NAMES:  # lines between more rows would hide them
        axes.set_yticks(np.arange(len(clients) + 1) - 0.5, minor=True)
        axes.set_xticks(np.arange(len(rounds) + 1) + rounds[0] - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.0)
    axes.tick_params(which="both", length=0)
    _round_axis(axes, rounds)
    return image


def predictions(
    model: torch.nn.Module,
    cache: CropCache,
    path: Path,
    decode: Decode,
    flip_permutation: Permutation | None = None,
    count: int = 12,
) -> None:
    """Predicted and true keypoints drawn on test images, spread over the whole test split."""
    test = cache.indices("test")
    if len(test) == 0:
        return
    chosen = test[np.linspace(0, len(test) - 1, min(count, len(test))).round().astype(int)]
    batch = next(iter(Batches(cache, chosen, batch_size=len(chosen), seed=0, shuffle=False)))
    found = find_keypoints(model, batch.images, decode, flip_permutation=flip_permutation).coordinates
    tiles = []
    for place, index in enumerate(chosen):
        # Drawn on the original image, where a person can judge it; the crop that the model saw is tiny.
        image = cv2.cvtColor(read_image(Path(cache.images[index])), cv2.COLOR_RGB2BGR).astype(np.uint8, copy=False)
        to_image = _input_to_image(cache, int(index))
        tiles.append(
            draw_comparison(
                image,
                truth=_mapped(batch.keypoints[place].numpy(), to_image),
                prediction=_mapped(found[place].numpy(), to_image),
                visible=batch.visible[place].numpy(),
                spec=cache.spec,
            )
        )
    write_image(path, contact_sheet(tiles, columns=4, legend=LEGEND))


def _input_to_image(cache: CropCache, index: int) -> np.ndarray:
    """The (2, 3) map from the unaugmented input, the middle of the cached crop, to the original image."""
    matrix = cache.to_image[index].copy()
    margins = [(side - inner) / 2 for side, inner in zip(cache.crops.shape[1:3], cache.input_size, strict=True)]
    matrix[:, 2] += matrix[:, :2] @ np.array(margins[::-1])
    return matrix


def _mapped(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def holdings(dealt: Mapping[str, Dealt], path: Path, title: str) -> None:
    """Training images of each client, stacked by the attribute that their data set is parted by (or naturally is)."""
    by_set = [
        [partition.holdings(one.config, one.cache, part) or Counter({member: len(part)}) for part in one.parts.train]
        for member, one in dealt.items()
    ]
    labels = [label for one in dealt.values() for label in one.parts.labels]
    kinds = list(dict.fromkeys(kind for counts in by_set for kind in sorted(set().union(*counts))))
    held = [counts for each in by_set for counts in each]
    figure = _figure(min(MOST_INCHES, max(5.0, 0.45 * len(held) + 2.5)), 4.0)
    axes = figure.subplots()
    heights = np.array([[counts[kind] for counts in held] for kind in kinds], dtype=float)
    colours = [COLOURS[place % len(COLOURS)] for place in range(len(kinds))]
    if len(held) <= MOST_NAMES:
        below = np.zeros(len(held))
        for kind, row, colour in zip(kinds, heights, colours, strict=True):
            axes.bar(range(len(held)), row, bottom=below, label=kind, color=colour)
            below += row
    else:  # a bar each would be thinner than a pixel, and take minutes to draw
        axes.stackplot(range(len(held)), heights, labels=kinds, colors=colours, step="mid")
    named = _some(len(held))
    axes.set_xticks(named, [labels[place] for place in named], rotation=45 if len(held) > 5 else 0)
    axes.set_ylabel("training images")
    axes.margins(y=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    attributes = {partition.attribute_of(one.config, one.cache) for one in dealt.values()} - {None}
    # Values of one attribute, or of several data sets.
    heading = next(iter(attributes)) if len(dealt) == 1 and attributes else None
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), title=heading)
    axes.set_title(f"{title}: who holds what")
    figure.savefig(path)
