"""Runs side by side: mean and standard deviation over seeds of everything else that was the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fedgh_app.errors import UserError
from fedgh_app.runs.outcome import Outcome, is_seed
from fedgh_app.runs.result import RESULT, Result

if TYPE_CHECKING:
    from fedgh_app.reports.comparison import Difference

# What differs between runs of one setting, beside every key that ends in "seed".
SEEDED = ("run_dir", "resume", "round_timeout", "keep_checkpoints")
ELSEWHERE = ("runtime.", "tracking.", "callbacks.")  # where a run ran, and what was written down of it
# Which keys say what was chosen in a group.
CHOICES = ("_target_", "name", "spec")


@dataclass(frozen=True, eq=False)
class Setting:
    """Runs that differ in their seeds alone.

    Attributes:
        name: the strategy, and what else tells it from the other settings.
        runs: in the order in which they were found.
    """

    name: str
    runs: tuple[Outcome, ...]

    @property
    def title(self) -> str:
        """The name, and on which images it was tested where that is not the server's."""
        return self.name + ("" if self.runs[0].result.evaluated == "central" else " (clients' own)")


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Run directories in ``folders``: those with a ``result.json``, or such folders below; each once.

    Raises UserError where a folder holds none.
    """
    found: list[Path] = []
    for folder in folders:
        if (folder / RESULT).exists():
            found.append(folder)
            continue
        below = sorted(file.parent for file in folder.glob(f"*/{RESULT}"))
        if not below:
            raise UserError(f"{folder}: no {RESULT} here or one folder below; expected a run directory or a sweep")
        found += sorted(below, key=lambda path: (len(path.name), path.name))
    return list({run.resolve(): run for run in found}.values())


def settings_of(folders: Sequence[Path]) -> list[Setting]:
    """The settings of the runs in ``folders``, in the order of first appearance.

    Raises UserError where there are no runs, or a file of one is damaged.
    """
    runs = [Outcome.read(directory) for directory in find_runs(folders)]
    configs = [run.values for run in runs]
    keys = sorted({key for config in configs for key in config} - set(SEEDED))
    keys = [key for key in keys if not is_seed(key) and not key.startswith(ELSEWHERE)]
    telling = [key for key in keys if len({str(config.get(key)) for config in configs}) > 1]
    held: dict[str, list[Outcome]] = {}
    for run in runs:
        held.setdefault(_name(run.values, configs, telling), []).append(run)
    return [Setting(name, tuple(runs)) for name, runs in held.items()]


def compare(settings: Sequence[Setting], baseline: str | None = None) -> list[dict[str, Any]]:
    """One row for each setting.

    Args:
        settings: as `settings_of` finds them.
        baseline: name of the setting that the others are compared with, as `baseline_of` finds it.

    Returns:
        For each setting ``setting`` (its name), ``runs`` (number), ``pck`` and ``per_keypoint`` as ``{"mean", "std"}``
        with the sample standard deviation (null for one run), ``worst_client`` likewise, ``evaluated``, ``epsilon``
        (the largest; null without differential privacy); with a baseline ``difference``, as
        `fedgh_app.reports.comparison.Difference` says, null for the baseline itself.
    """
    rows = [_row(setting) for setting in settings]
    if baseline is not None:
        against = baseline_of(settings, baseline)
        found = differences(settings, against)
        for row in rows:
            gained = found.get(row["setting"])
            row["difference"] = {"baseline": against.name, **vars(gained)} if gained else None
    return rows


def baseline_of(settings: Sequence[Setting], name: str) -> Setting:
    """The setting that ``name`` names: all of its name, else the one that begins so, whatever the case.

    Raises UserError where there is none, or more than one.
    """
    wanted = name.casefold()
    for match in (
        [setting for setting in settings if setting.name.casefold() == wanted],
        [setting for setting in settings if setting.name.casefold().startswith(wanted)],
    ):
        if len(match) == 1:
            return match[0]
    names = ", ".join(repr(setting.name) for setting in settings)
    raise UserError(f"--baseline {name}: names {'more than one' if match else 'no'} setting; expected one of {names}")


def differences(settings: Sequence[Setting], baseline: Setting) -> dict[str, Difference]:
    """What each other setting gained over the baseline in PCK, by its name."""
    from fedgh_app.reports.comparison import adjusted, difference

    found = {}
    for setting in settings:
        if setting is not baseline:
            shared = sorted(set(setting.runs[0].seeds()) & set(baseline.runs[0].seeds()))
            found[setting.name] = difference(_by_seed(setting, shared), _by_seed(baseline, shared))
    return adjusted(found)


def _by_seed(setting: Setting, keys: Sequence[str]) -> dict[object, float]:
    """PCK by the values of the seeds ``keys``; a seed that was run twice has no one partner, and is left out."""
    found: dict[object, list[float]] = {}
    for run in setting.runs:
        if run.result.score is not None:
            found.setdefault(tuple(run.values[key] for key in keys), []).append(run.result.score)
    return {seed: values[0] for seed, values in found.items() if len(values) == 1}


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
        if key in config and len({str(other.get(key)) for other in _peers(key, config, alike)}) > 1
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


def _row(setting: Setting) -> dict[str, Any]:
    results = [run.result for run in setting.runs]
    keypoints = list(results[0].parts)
    held = [[value for value in result.clients_score.values() if value is not None] for result in results]
    worst = [min(values) for values in held if values]
    return {
        "setting": setting.name,
        "runs": len(results),
        "evaluated": results[0].evaluated,
        "pck": _spread([result.score for result in results]),
        "per_keypoint": {key: _spread([result.parts.get(key) for result in results]) for key in keypoints},
        "worst_client": _spread(worst) if len(worst) == len(results) else None,
        "heatmap_accuracy": _spread([result.more.get("heatmap_accuracy") for result in results]),
        "epsilon": max((spent for spent in map(_epsilon, results) if spent is not None), default=None),
        "seconds": float(np.mean([result.seconds.rounds for result in results])),
        "rejected": sum(len(result.rejected) for result in results),
    }


def _epsilon(result: Result) -> float | None:
    return result.privacy.get("epsilon")


def _spread(values: Sequence[float | None]) -> dict[str, float | None] | None:
    present = [value for value in values if value is not None]
    if not present:
        return None
    return {
        "mean": float(np.mean(present)),
        "std": float(np.std(present, ddof=1)) if len(present) > 1 else None,
    }


def print_report(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The rows as tables that fit a terminal of 80 columns: settings, differences from the baseline, keypoints."""
    table = Table(title="PCK (%), mean ± standard deviation over runs")
    table.add_column("setting", overflow="fold", min_width=12)
    for column in ("runs", "mean", "worst client", "heatmap acc.", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    names = [row["setting"] + ("" if row["evaluated"] == "central" else " (clients' own)") for row in rows]
    for name, row in zip(names, rows, strict=True):
        values = (spread_text(row[key]) for key in ("pck", "worst_client", "heatmap_accuracy"))
        table.add_row(name, str(row["runs"]), *values, f"{row['seconds']:.0f}")
    console.print(table)
    if any(row.get("difference") for row in rows):
        _print_differences(rows, console)
    keypoints = Table(title="PCK (%) by keypoint")
    keypoints.add_column("keypoint", no_wrap=True)
    for name in names:
        keypoints.add_column(name, justify="right", overflow="fold", min_width=11)
    for keypoint in keypoints_of(rows):
        keypoints.add_row(keypoint, *(spread_text(row["per_keypoint"].get(keypoint)) for row in rows))
    console.print(keypoints)


def _print_differences(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    found = {row["setting"]: row["difference"] for row in rows if row["difference"]}
    against = next(iter(found.values()))["baseline"]
    table = Table(title=f"PCK minus that of {against} (percentage points), same seeds")
    table.add_column("setting", overflow="fold", min_width=12)
    for column in ("pairs", "difference", "95 % interval", "p (t, Holm)"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, gained in found.items():
        table.add_row(name, str(gained["pairs"]), *difference_texts(gained))
    console.print(table)


def keypoints_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All keypoints, in the order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row["per_keypoint"]))


def spread_text(spread: Mapping[str, float | None] | None) -> str:
    """``57.3 ± 1.2`` in percent; without the second number for one run."""
    if spread is None:
        return percent_text(None)
    if spread["mean"] is None or spread["std"] is None:
        return percent_text(spread["mean"])
    return f"{100 * spread['mean']:.1f} ± {100 * spread['std']:.1f}"


def percent_text(value: float | None) -> str:
    """``57.3``, or a dash."""
    return "-" if value is None else f"{100 * value:.1f}"


def difference_texts(gained: Mapping[str, Any]) -> tuple[str, str, str]:
    """Difference and confidence interval in percentage points, and the adjusted p-value."""
    interval = "-" if gained["low"] is None else f"{100 * gained['low']:+z.1f} to {100 * gained['high']:+z.1f}"
    return (
        "-" if gained["mean"] is None else f"{100 * gained['mean']:+z.1f}",
        interval,
        p_text(gained["p_holm"]),
    )


def p_text(value: float | None) -> str:
    """A p-value, or a dash where there is no test."""
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
