"""Runs side by side: mean and standard deviation over seeds of everything else that was the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typing_extensions import TypedDict

from fedgh_app.errors import UserError
from fedgh_app.resources import Values
from fedgh_app.runs.opening import Outcome, is_seed
from fedgh_app.runs.result import RESULT
from fedgh_app.words import percentage, short

if TYPE_CHECKING:
    from fedgh_app.reports.comparison import Difference

# What differs between runs of one setting, beside every key that ends in "seed".
SEEDED = ("run_dir", "resume", "round_timeout", "keep_checkpoints")
ELSEWHERE = ("runtime.", "tracking.", "callbacks.")  # where a run ran, and where its numbers went
# Which keys say what was chosen in a group.
CHOICES = ("_target_", "name", "spec")


@dataclass(frozen=True, eq=False)
class Setting:
    """Runs that differ in their seeds alone."""

    name: str  # the strategy, and what else tells it from the other settings
    runs: tuple[Outcome, ...]  # in the order in which they were found

    @property
    def title(self) -> str:
        """The name, and on which images it was tested where that is not the server's."""
        return self.name + ("" if self.runs[0].result.evaluated == "central" else " (clients' own)")


class Spread(TypedDict):
    """Mean over runs, and sample standard deviation; None for a single run."""

    mean: float
    std: float | None


class Row(TypedDict):
    """A setting in numbers, as ``--json`` prints them."""

    setting: str
    runs: int
    metric: str  # name of the headline
    part: str  # what a part is called
    evaluated: Literal["central", "clients"]  # who measured
    score: Spread | None  # the headline
    parts: dict[str, Spread | None]  # that of each part
    worst_client: Spread | None  # the lowest of a client on its own test images
    more: dict[str, Spread | None]  # further metrics of the task
    epsilon: float | None  # the largest that was spent; None without differential privacy
    seconds: float  # mean of a run's
    rejected: int  # replies, in all runs
    difference: NotRequired[dict[str, Any] | None]  # as `Difference` says; None for the baseline itself


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The folders with a ``result.json``, or those one below, each once; UserError where a folder holds none."""
    runs: list[Path] = []
    for folder in folders:
        if (folder / RESULT).exists():
            runs.append(folder)
            continue
        below = sorted(file.parent for file in folder.glob(f"*/{RESULT}"))
        if not below:
            raise UserError(f"{folder}: no {RESULT} here or one folder below; expected a run directory or a sweep")
        runs += sorted(below, key=lambda path: (len(path.name), path.name))
    return list({run.resolve(): run for run in runs}.values())


def settings_of(folders: Sequence[Path]) -> list[Setting]:
    """The settings of the runs in ``folders``, as they come; UserError where there are none, or a file is damaged."""
    runs = [Outcome.read(directory) for directory in find_runs(folders)]
    configs = [run.values for run in runs]
    keys = sorted({key for config in configs for key in config} - set(SEEDED))
    keys = [key for key in keys if not is_seed(key) and not key.startswith(ELSEWHERE)]
    telling = [key for key in keys if len({str(config.get(key)) for config in configs}) > 1]
    by_name: dict[str, list[Outcome]] = {}
    for run in runs:
        by_name.setdefault(_name(run.values, configs, telling), []).append(run)
    return [Setting(name, tuple(runs)) for name, runs in by_name.items()]


def compare(settings: Sequence[Setting], baseline: str | None = None) -> list[Row]:
    """One row for each setting, with differences from the ``baseline``, as `baseline_of` finds it."""
    rows = [_row(setting) for setting in settings]
    if baseline is not None:
        against = baseline_of(settings, baseline)
        by_name = differences(settings, against)
        for row in rows:
            gained = by_name.get(row["setting"])
            row["difference"] = {"baseline": against.name, **vars(gained)} if gained else None
    return rows


def baseline_of(settings: Sequence[Setting], name: str) -> Setting:
    """The setting of that name, or the only one that begins so, whatever the case; UserError where there is none."""
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
    """What each other setting gained over the baseline in the headline, by its name."""
    from fedgh_app.reports.comparison import adjusted, difference

    gained = {}
    for setting in settings:
        if setting is not baseline:
            shared = sorted(set(setting.runs[0].seeds()) & set(baseline.runs[0].seeds()))
            gained[setting.name] = difference(_by_seed(setting, shared), _by_seed(baseline, shared))
    return adjusted(gained)


def _by_seed(setting: Setting, keys: Sequence[str]) -> dict[object, float]:
    """The headline by the values of the seeds ``keys``, but of a seed that was run twice, which has no one partner."""
    scores: dict[object, list[float]] = {}
    for run in setting.runs:
        if run.result.score is not None:
            scores.setdefault(tuple(run.values[key] for key in keys), []).append(run.result.score)
    return {seed: values[0] for seed, values in scores.items() if len(values) == 1}


def _kind(config: Values) -> str:
    federated = config["runtime.name"] not in ("centralised", "local")
    return str(config["strategy._target_"]).rsplit(".", 1)[-1] if federated else str(config["runtime.name"])


def _name(config: Values, configs: Sequence[Values], telling: Sequence[str]) -> str:
    """The kind of run, and every other value by which it differs from others of this kind."""
    kind = _kind(config)
    alike = [other for other in configs if _kind(other) == kind]
    extras = [
        _told(key, config[key])
        for key in telling
        if key in config and len({str(other.get(key)) for other in _peers(key, config, alike)}) > 1
    ]
    return " ".join([kind, *extras])


def _peers(key: str, config: Values, alike: Sequence[Values]) -> list[Values]:
    """The runs that made the same choice in the key's group: another choice has keys of its own."""
    group, _, last = key.rpartition(".")
    choices = () if last in CHOICES else tuple(f"{group}.{word}" for word in CHOICES)
    return [other for other in alike if all(other.get(choice) == config.get(choice) for choice in choices)]


def _told(key: str, value: object) -> str:
    """``objective=Prox`` or ``topology=flat`` for the choice of a group, else ``objective.mu=0.1``."""
    group, _, last = key.rpartition(".")
    return f"{group}={str(value).rsplit('.', 1)[-1]}" if group and last in CHOICES else f"{key}={value}"


def _row(setting: Setting) -> Row:
    results = [run.result for run in setting.runs]
    first = results[0]
    by_client = [[score for score in result.clients_score.values() if score is not None] for result in results]
    worst = [min(scores) for scores in by_client if scores]
    spent = [epsilon for result in results if (epsilon := result.privacy.get("epsilon")) is not None]
    return {
        "setting": setting.name,
        "runs": len(results),
        "metric": first.metric,
        "part": first.part,
        "evaluated": first.evaluated,
        "score": _spread([result.score for result in results]),
        "parts": {name: _spread([result.parts.get(name) for result in results]) for name in first.parts},
        "worst_client": _spread(worst) if len(worst) == len(results) else None,
        "more": {name: _spread([result.more.get(name) for result in results]) for name in first.more},
        "epsilon": max(spent, default=None),
        "seconds": float(np.mean([result.seconds.rounds for result in results])),
        "rejected": sum(len(result.rejected) for result in results),
    }


def _spread(values: Sequence[float | None]) -> Spread | None:
    present = [value for value in values if value is not None]
    if not present:
        return None
    std = float(np.std(present, ddof=1)) if len(present) > 1 else None
    return {"mean": float(np.mean(present)), "std": std}


def print_report(rows: Sequence[Row], console: Console) -> None:
    """The rows as tables that fit a terminal of 80 columns: settings, differences from the baseline, parts."""
    metric = escape(short_metric(rows))
    table = Table(title=f"{metric} (%), mean ± standard deviation over runs")
    table.add_column("setting", overflow="fold", min_width=12)
    for column in ("runs", "mean", "worst client", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    names = [escape(row["setting"] + ("" if row["evaluated"] == "central" else " (clients' own)")) for row in rows]
    for name, row in zip(names, rows, strict=True):
        values = (spread_text(row["score"]), spread_text(row["worst_client"]))
        table.add_row(name, str(row["runs"]), *values, f"{row['seconds']:.0f}")
    console.print(table)
    if any(row.get("difference") for row in rows):
        _print_differences(rows, metric, console)
    word = escape(part_word(rows))
    by_part = _a_column_each(f"{metric} (%) by {word}", word, names)
    for part in names_in(rows, "parts"):
        by_part.add_row(escape(part), *(spread_text(row["parts"].get(part)) for row in rows))
    console.print(by_part)
    if further := names_in(rows, "more"):
        by_metric = _a_column_each("further metrics (%)", "metric", names)
        for key in further:
            by_metric.add_row(escape(readable(key)), *(spread_text(row["more"].get(key)) for row in rows))
        console.print(by_metric)


def _a_column_each(title: str, first: str, names: Sequence[str]) -> Table:
    table = Table(title=title)
    table.add_column(first, no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", overflow="fold", min_width=11)
    return table


def _print_differences(rows: Sequence[Row], metric: str, console: Console) -> None:
    gains = {row["setting"]: gained for row in rows if (gained := row.get("difference"))}
    against = next(iter(gains.values()))["baseline"]
    table = Table(title=f"{metric} minus that of {escape(against)} (percentage points), same seeds")
    table.add_column("setting", overflow="fold", min_width=12)
    for column in ("pairs", "difference", "95 % interval", "p (t, Holm)"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, gained in gains.items():
        table.add_row(escape(name), str(gained["pairs"]), *difference_texts(gained))
    console.print(table)


def names_in(rows: Sequence[Row], table: Literal["parts", "more"]) -> list[str]:
    """What the tables of all rows have, in the order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row[table]))


def short_metric(rows: Sequence[Row]) -> str:
    """The headline's short name; of rows that differ in it each one's."""
    return " / ".join(dict.fromkeys(short(row["metric"]) for row in rows))


def part_word(rows: Sequence[Row]) -> str:
    """What a part is called; of rows that differ in it each one's."""
    return " / ".join(dict.fromkeys(row["part"] for row in rows))


def readable(key: str) -> str:
    """A metric's key as people write it: ``rank_1`` is rank 1, ``auc`` AUC."""
    return key.upper() if len(key) <= 3 else key.replace("_", " ")


def spread_text(spread: Spread | None) -> str:
    """``57.3 ± 1.2`` in percent; without the second number for one run."""
    if spread is None:
        return percentage(None)
    if spread["std"] is None:
        return percentage(spread["mean"])
    return f"{100 * spread['mean']:.1f} ± {100 * spread['std']:.1f}"


def difference_texts(gained: Mapping[str, Any]) -> tuple[str, str, str]:
    """Difference and confidence interval in percentage points, and the adjusted p-value."""
    interval = "-" if gained["low"] is None else f"{100 * gained['low']:+z.1f} to {100 * gained['high']:+z.1f}"
    return ("-" if gained["mean"] is None else f"{100 * gained['mean']:+z.1f}", interval, p_text(gained["p_holm"]))


def p_text(value: float | None) -> str:
    """A p-value, or a dash where there is no test."""
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
