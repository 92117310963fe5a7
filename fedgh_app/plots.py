"""The pictures of a run, drawn from its history at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from omegaconf import DictConfig

from fedgh_app.federation import Round
from fedgh_app.partition import Partition
from fedgh_app.pose.batches import Batches
from fedgh_app.pose.cache import CropCache
from fedgh_app.pose.drawing import LEGEND, contact_sheet, draw_comparison
from fedgh_app.pose.heatmaps import decode
from fedgh_app.pose.images import read_image
from fedgh_app.pose.training import predict

matplotlib.use("Agg")

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00")
MOST_CLIENTS = 12  # curves or matrix rows beyond this cannot be read
MOST_ROUNDS = 10


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _curves(axes: Any, curves: Mapping[str, tuple[list[int], list[float]]], metric: str) -> None:
    for place, (label, (rounds, values)) in enumerate(curves.items()):
        mean = label == "mean"
        axes.plot(
            rounds,
            [100 * value for value in values],
            marker="o",
            markersize=3.5,
            linewidth=2.6 if mean else 1.6,
            color="#333333" if mean else COLOURS[place % len(COLOURS)],
            linestyle="--" if mean else "-",
            label=label,
        )
    _round_axis(axes, [number for rounds, _ in curves.values() for number in rounds])
    axes.set_ylabel(f"{metric} (%)")
    axes.set_ylim(0, 101)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", framealpha=0.8, edgecolor="none", ncols=1 + len(curves) // 9)


def _round_axis(axes: Any, rounds: Sequence[int]) -> None:
    axes.set_xlabel("round")
    axes.set_xlim(min(rounds) - 0.5, max(rounds) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def keypoint_curves(history: Sequence[Round], path: Path, title: str, metric: str) -> None:
    """PCK of each keypoint, and their mean, by round."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    where = "central" if any("central" in this.evaluate for this in history) else "clients"
    for this in history:
        found = this.evaluate.get(where)
        if not found:
            continue
        for name, value in {**found["per_keypoint"], "mean": found["pck"]}.items():
            rounds, values = curves.setdefault(name, ([], []))
            rounds.append(this.round)
            values.append(value)
    if not curves:
        return
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    _curves(axes, curves, metric)
    axes.set_title(f"{title}: keypoints, {'all test images' if where == 'central' else 'clients pooled'}")
    figure.savefig(path)


def client_curves(history: Sequence[Round], labels: Mapping[str, str], path: Path, title: str, metric: str) -> None:
    """Mean PCK on each client's own test images, by round; with many clients, their quartiles."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for this in history:
        for name, found in this.evaluate.get("clients", {}).get("by_client", {}).items():
            rounds, values = curves.setdefault(_named(name, labels), ([], []))
            rounds.append(this.round)
            values.append(found["pck"])
    if not curves:
        return
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    if len(curves) > MOST_CLIENTS:
        curves = _quartiles(curves)
    _curves(axes, curves, metric)
    axes.set_title(f"{title}: clients, own test images")
    figure.savefig(path)


def _quartiles(
    curves: Mapping[str, tuple[list[int], list[float]]],
) -> dict[str, tuple[list[int], list[float]]]:
    by_round: dict[int, list[float]] = {}
    for rounds, values in curves.values():
        for server_round, value in zip(rounds, values, strict=True):
            by_round.setdefault(server_round, []).append(value)
    rounds = sorted(by_round)
    levels = {"best": 100, "upper quartile": 75, "median": 50, "lower quartile": 25, "worst": 0}
    return {
        name: (rounds, [float(np.nanpercentile(by_round[r], level)) for r in rounds]) for name, level in levels.items()
    }


def _named(name: str, labels: Mapping[str, str]) -> str:
    label = labels.get(name, name)
    return label if label != name else f"client {name}"


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
    largest = max([0.1, *(float(np.abs(m - np.diag(np.diag(m))).max()) for m in matrices if m.size)])
    figure = _figure(2.1 * columns + 1.0, 2.25 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(rounds) :]:
        axes.set_visible(False)
    for axes, this, matrix in zip(grid.flat, rounds, matrices, strict=False):
        names = [_named(name, labels) for name in this.strategy["clients"]]
        np.fill_diagonal(matrix, np.nan)  # always 1, it would drown the rest
        image = axes.imshow(matrix, vmin=-largest, vmax=largest, cmap="RdBu")
        axes.set_facecolor("#dddddd")
        axes.set_title(f"round {this.round}", fontsize=9)
        few = len(names) <= 6
        axes.set_xticks(range(len(names)) if few else [], names if few else [], fontsize=6.5, rotation=45)
        axes.set_yticks(range(len(names)) if few else [], names if few else [], fontsize=6.5)
        if few:
            for (row, column), value in np.ndenumerate(matrix):
                if row != column:
                    colour = "w" if abs(value) > 0.6 * largest else "k"
                    axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=colour)
    figure.colorbar(image, ax=grid, shrink=0.8, label="cosine (negative: conflict)")
    figure.suptitle(f"{title}: cosines between client updates", fontsize=11)
    figure.savefig(path)


def weight_bars(history: Sequence[Round], labels: Mapping[str, str], path: Path, title: str) -> None:
    """The weight of each client's update by round, and the share of client pairs in conflict."""
    measured = [this for this in history if this.strategy.get("c")]
    if not measured:
        return
    names = sorted({name for this in measured for name in this.strategy["c"]})
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    rounds = [this.round for this in measured]
    if len(names) <= MOST_CLIENTS:
        for place, name in enumerate(names):
            values = [this.strategy["c"].get(name, np.nan) for this in measured]
            colour = COLOURS[place % len(COLOURS)]
            axes.plot(rounds, values, marker="o", markersize=3.5, color=colour, label=_named(name, labels))
        axes.set_ylabel("weight of the client's update")
        axes.legend(frameon=False, fontsize=8, loc="upper left", title="weight (left axis)", title_fontsize=8)
    _round_axis(axes, rounds)
    highest = max(value for this in measured for value in this.strategy["c"].values())
    axes.set_ylim(0, 1.5 * max(highest, 0.1))  # room for the legends
    conflicts = [this.strategy.get("conflicting") for this in measured]
    if all(value is not None for value in conflicts):
        other = axes.twinx()
        by_tensor = [np.mean([*this.strategy.get("conflicting_per_tensor", {}).values()] or [0]) for this in measured]
        other.bar(
            rounds, [100 * float(v) for v in by_tensor], width=0.6, color="#999999", alpha=0.25, label="by tensor"
        )
        whole = [100 * float(value) for value in conflicts if value is not None]
        other.bar(rounds, whole, width=0.3, color="#555555", alpha=0.5, label="whole model")
        other.set_ylabel("client pairs in conflict (%, bars)")
        other.set_ylim(0, 100)
        other.legend(frameon=False, fontsize=8, loc="upper right", title="conflicts (right axis)", title_fontsize=8)
    axes.set_title(f"{title}: weights and conflicts")
    figure.savefig(path)


def predictions(model: torch.nn.Module, cache: CropCache, path: Path, count: int = 12) -> None:
    """Predicted and true keypoints drawn on test images, spread over the whole test split."""
    test = cache.indices("test")
    if len(test) == 0:
        return
    chosen = test[np.linspace(0, len(test) - 1, min(count, len(test))).round().astype(int)]
    batch = next(iter(Batches(cache, chosen, batch_size=len(chosen), seed=0, shuffle=False)))
    size = (int(batch.images.shape[-2]), int(batch.images.shape[-1]))
    found, _ = decode(predict(model, batch.images), size)
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
    cv2.imwrite(str(path), contact_sheet(tiles, columns=4, legend=LEGEND))


def _input_to_image(cache: CropCache, index: int) -> np.ndarray:
    """The (2, 3) map from the unaugmented input, the middle of the cached crop, to the original image."""
    matrix = cache.to_image[index].copy()
    margins = [(side - inner) / 2 for side, inner in zip(cache.crops.shape[1:3], cache.input_size, strict=True)]
    matrix[:, 2] += matrix[:, :2] @ np.array(margins[::-1])
    return matrix


def _mapped(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def who_holds_what(config: DictConfig, cache: CropCache, parts: Partition, path: Path) -> None:
    """Training images of each client, stacked by the attribute that the data set is parted by (or naturally is)."""
    by = config.partition.get("partition_by") or config.dataset.natural_attribute
    values = np.asarray(cache.attributes[by]) if by in cache.attributes else np.full(len(cache.ids), "images")
    kinds = sorted(set(values[cache.indices("train")].tolist()))
    figure = _figure(max(5.0, 0.45 * parts.num_clients + 2.5), 4.0)
    axes = figure.subplots()
    below = np.zeros(parts.num_clients)
    for place, kind in enumerate(kinds):
        counts = np.array([(values[list(part)] == kind).sum() for part in parts.train], dtype=float)
        axes.bar(range(parts.num_clients), counts, bottom=below, label=kind, color=COLOURS[place % len(COLOURS)])
        below += counts
    axes.set_xticks(range(parts.num_clients), parts.labels, rotation=45 if parts.num_clients > 5 else 0)
    axes.set_ylabel("training images")
    axes.margins(y=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), title=by)
    axes.set_title(f"{config.dataset.spec}: who holds what")
    figure.savefig(path)
