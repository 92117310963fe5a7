"""Runs side by side: mean and standard deviation over seeds of everything else that was the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from fedgh_app import storage
from fedgh_app.pose.errors import UserError

if TYPE_CHECKING:
    from fedgh_app.federation import Federation

# What differs between runs of one setting, beside every key that ends in "seed".
SEEDED = ("run_dir", "resume", "tracking.group")
# Which keys say what was chosen in a group.
CHOICES = ("_target_", "name", "spec")


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Run directories in ``folders``: those with a ``result.json``, or such folders below.

    Raises UserError where a folder holds none.
    """
    found: list[Path] = []
    for folder in folders:
        if (folder / "result.json").exists():
            found.append(folder)
            continue
        below = sorted(file.parent for file in folder.glob("*/result.json"))
        if not below:
            raise UserError(f"{folder}: no result.json here or one folder below; expected a run directory or a sweep")
        found += sorted(below, key=lambda path: (len(path.name), path.name))
    return found


def compare(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """One row for each setting, in the order of first appearance.

    Returns:
        For each setting ``setting`` (its name: the strategy and what else tells the settings apart), ``runs`` (number),
        ``pck`` and ``per_keypoint`` as ``{"mean", "std"}`` with the sample standard deviation (null for one run),
        ``worst_client`` likewise, ``evaluated``.
    """
    runs = find_runs(folders)
    configs = [_flat(OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))) for run in runs]
    results = [storage.read_json(run / "result.json") for run in runs]
    keys = sorted({key for config in configs for key in config} - set(SEEDED))
    keys = [key for key in keys if key.rpartition(".")[2] != "seed"]
    telling = [key for key in keys if len({str(config.get(key)) for config in configs}) > 1]
    rows: dict[str, list[dict[str, Any]]] = {}
    for config, result in zip(configs, results, strict=True):
        rows.setdefault(_name(config, configs, telling), []).append(result)
    return [_row(name, held) for name, held in rows.items()]


def headline(evaluate: Mapping[str, Any]) -> dict[str, Any]:
    """What counts of a round's evaluation: the server's own, else the clients', weighted by their test images."""
    clients = evaluate.get("clients") or {}
    return dict(evaluate.get("central") or {**clients, **clients.get("weighted", {})})


def result_of(run: Federation) -> dict[str, Any]:
    """What ``result.json`` says of a run, as far as it came.

    The headline is central where the server saw test images, else the clients' own.
    """
    last = run.history[-1].evaluate if run.history else {}
    found = headline(last)
    return {
        "pck": found.get("pck"),
        "per_keypoint": found.get("per_keypoint", {}),
        "evaluated": "central" if "central" in last else "clients",
        "rounds": run.history[-1].round if run.history else 0,
        "seconds": run.seconds(),
        "rejected": [item for this in run.history for item in this.rejected],
        "before": headline(run.history[0].evaluate).get("per_keypoint", {}) if run.history else {},
        "heatmap_accuracy": found.get("heatmap_accuracy"),
        "auc": found.get("auc"),
        "privacy": run.history[-1].privacy if run.history else {},
        "clients": {
            name: {"label": info.label, "examples": info.examples, "test_examples": info.test_examples}
            for name, info in run.clients.items()
        },
        "clients_pck": {name: values["pck"] for name, values in last.get("clients", {}).get("by_client", {}).items()},
        "dataset": run.config.dataset.spec,
    }


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix.rstrip("."): tree}
    return {key: value for name, item in tree.items() for key, value in _flat(item, f"{prefix}{name}.").items()}


def _kind(config: Mapping[str, Any]) -> str:
    """The strategy, or the baseline that a run was."""
    federated = config["runtime.name"] not in ("centralised", "local")
    return str(config["strategy._target_"]).rsplit(".", 1)[-1] if federated else str(config["runtime.name"])


def _name(config: Mapping[str, Any], configs: Sequence[Mapping[str, Any]], telling: Sequence[str]) -> str:
    """The kind of run, and every other value by which it differs from others of this kind."""
    kind = _kind(config)
    alike = [other for other in configs if _kind(other) == kind]
    extras = [
        _told(key, config[key])
        for key in telling
        if key in config
        and not key.startswith("runtime.")
        and len({str(other.get(key)) for other in _peers(key, config, alike)}) > 1
    ]
    return " ".join([kind, *extras])


def _peers(key: str, config: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The runs that made the same choice in the key's group: another choice has keys of its own."""
    group, _, last = key.rpartition(".")
    choices = () if last in CHOICES else tuple(f"{group}.{word}" for word in CHOICES)
    return [other for other in alike if all(other.get(choice) == config.get(choice) for choice in choices)]


def _told(key: str, value: Any) -> str:
    """``objective=Prox`` or ``topology=flat`` for the choice of a group, else ``objective.mu=0.1``."""
    group, _, last = key.rpartition(".")
    return f"{group}={str(value).rsplit('.', 1)[-1]}" if group and last in CHOICES else f"{key}={value}"


def _row(name: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    keypoints = list(results[0]["per_keypoint"])
    held = [[value for value in result.get("clients_pck", {}).values() if value is not None] for result in results]
    worst = [min(values) for values in held if values]
    return {
        "setting": name,
        "runs": len(results),
        "evaluated": results[0]["evaluated"],
        "pck": _spread([result["pck"] for result in results]),
        "per_keypoint": {key: _spread([result["per_keypoint"].get(key) for result in results]) for key in keypoints},
        "worst_client": _spread(worst) if len(worst) == len(results) else None,
        "heatmap_accuracy": _spread([result.get("heatmap_accuracy") for result in results]),
        "seconds": float(np.mean([result["seconds"]["rounds"] for result in results])),
        "rejected": sum(len(result["rejected"]) for result in results),
    }


def _spread(values: Sequence[float | None]) -> dict[str, float | None] | None:
    present = [value for value in values if value is not None]
    if not present:
        return None
    return {
        "mean": float(np.mean(present)),
        "std": float(np.std(present, ddof=1)) if len(present) > 1 else None,
    }


def print_report(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The rows as two tables that fit a terminal of 80 columns: settings, and their keypoints."""
    table = Table(title="PCK (%), mean ± standard deviation over runs")
    table.add_column("setting", overflow="fold", min_width=12)
    for column in ("runs", "mean", "worst client", "heatmap acc.", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    names = [row["setting"] + ("" if row["evaluated"] == "central" else " (clients' own)") for row in rows]
    for name, row in zip(names, rows, strict=True):
        values = (_text(row[key]) for key in ("pck", "worst_client", "heatmap_accuracy"))
        table.add_row(name, str(row["runs"]), *values, f"{row['seconds']:.0f}")
    console.print(table)
    keypoints = Table(title="PCK (%) by keypoint")
    keypoints.add_column("keypoint", no_wrap=True)
    for name in names:
        keypoints.add_column(name, justify="right", overflow="fold", min_width=11)
    for keypoint in dict.fromkeys(key for row in rows for key in row["per_keypoint"]):
        keypoints.add_row(keypoint, *(_text(row["per_keypoint"].get(keypoint)) for row in rows))
    console.print(keypoints)


def _text(spread: Mapping[str, float | None] | None) -> str:
    if spread is None or spread["mean"] is None:
        return "-"
    if spread["std"] is None:
        return f"{100 * spread['mean']:.1f}"
    return f"{100 * spread['mean']:.1f} ± {100 * spread['std']:.1f}"
