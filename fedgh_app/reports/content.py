"""What both forms of a report say, as the templates have it."""

import shlex
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from fedgh_app.config.changes import changes
from fedgh_app.reports.figures import INK, MOST_SETTINGS, colour_of, cosines_of, curve_of
from fedgh_app.reports.notes import environment, notes
from fedgh_app.reports.pictures import cosine_pictures, curve_pictures, dash, forest_picture, outcomes_picture
from fedgh_app.reports.statistics import (
    Row,
    Setting,
    Spread,
    baseline_of,
    compare,
    difference_texts,
    differences,
    names_in,
    part_word,
    short_metric,
)
from fedgh_app.resources import Values
from fedgh_app.runs.opening import Outcome
from fedgh_app.runs.records import LAUNCH, TRACKING, Launch, Tracking
from fedgh_app.runs.sweep import SWEEP, Sweep
from fedgh_app.words import count, plural

FIGURES = "report-figures"
MOST_REJECTED = 40  # rows of a table that people still read


def content_of(settings: Sequence[Setting], folders: Sequence[Path], baseline: str | None) -> dict[str, Any]:
    """The content of a report, given what `fedgh_app.reports.page.write` is."""
    rows = compare(settings, baseline)
    against = baseline_of(settings, baseline) if baseline is not None else None
    gained = differences(settings, against) if against else {}
    sweeps = [Sweep.read(folder.resolve()) for folder in folders if (folder / SWEEP).exists()]
    metrics, short = {row["metric"] for row in rows}, short_metric(rows)
    metric = metrics.pop() if len(metrics) == 1 else short
    shown = _shown(settings, against)
    curves = {setting: curve for setting in shown if (curve := curve_of(setting)) is not None}
    cosines = {setting: measured for setting in shown if (measured := cosines_of(setting)) is not None}
    tested = against is not None and any(one.mean is not None for one in gained.values())
    return {
        "title": f"Sweep {folders[0].resolve().name}" if sweeps and len(folders) == 1 else "Runs compared",
        "summary": _summary(settings, sweeps),
        "metric": metric,
        "baseline": against,
        "differences": [(name, one, [*map(dash, difference_texts(vars(one)))]) for name, one in gained.items()],
        "ranked": any(one.p_wilcoxon is not None for one in gained.values()),
        "outcomes": outcomes_picture(settings, rows, metric),
        "forest": forest_picture(gained, against.name, short) if against and tested else None,
        "curves": curve_pictures(settings, curves, metric),
        "cosines": cosine_pictures(cosines),
        "notes": notes(settings, shown, curves, cosines, gained, against, short),
        "folder": FIGURES,
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "version": metadata.version("fedgh"),
        **_tables(settings, rows),
        **_jobs(sweeps),
        **_again(settings, folders, sweeps, baseline),
    }


def _tables(settings: Sequence[Setting], rows: Sequence[Row]) -> dict[str, object]:
    parts, more = names_in(rows, "parts"), names_in(rows, "more")
    runs = [_line(setting, run) for setting in settings for run in setting.runs]
    return {
        "table": list(zip(settings, rows, strict=True)),
        "colours": [colour_of(place).replace(INK, "var(--ink)") for place in range(len(settings))],
        "part": part_word(rows),
        "parts_title": " / ".join(plural(word) for word in part_word(rows).split(" / ")).capitalize(),
        "parts": parts,
        "more": more,
        "best_score": _largest([row["score"] for row in rows]),
        "best_worst_client": _largest([row["worst_client"] for row in rows]),
        "best_parts": {name: _largest([row["parts"].get(name) for row in rows]) for name in parts},
        "best_more": {name: _largest([row["more"].get(name) for row in rows]) for name in more},
        "private": any(row["epsilon"] is not None for row in rows),
        "runs": runs,
        "tracked": any(run["url"] or run["sync"] for run in runs),
        "rejected": [
            {"setting": setting.title, "run": run.directory.name, **vars(item)}
            for setting in settings
            for run in setting.runs
            for item in run.result.rejected
        ],
        "most_rejected": MOST_REJECTED,
    }


def _largest(spreads: Sequence[Spread | None]) -> float | None:
    """The highest mean; None where there is nothing to be higher than."""
    known = [spread["mean"] for spread in spreads if spread is not None]
    return max(known) if len(known) > 1 else None


def _jobs(sweeps: Sequence[Sweep]) -> dict[str, object]:
    unfinished = [
        {
            "number": job.number,
            "differs": " ".join(sweep.differing(job)),
            "status": job.status,
            "reason": job.reason or "",
            "log": sweep.log(job).name if sweep.log(job).exists() else "",
        }
        for sweep in sweeps
        for job in sweep.jobs
        if not sweep.has_result(job)
    ]
    return {
        "jobs": [job for sweep in sweeps for job in sweep.jobs],
        "unfinished": unfinished,
        "resume_commands": [sweep.command for sweep in sweeps if sweep.jobs and unfinished],
    }


def _again(
    settings: Sequence[Setting], folders: Sequence[Path], sweeps: Sequence[Sweep], baseline: str | None
) -> dict[str, object]:
    return {
        "shared": _shared([setting.runs[0].config for setting in settings]),
        "commands": _commands(sweeps, settings),
        "report_command": _report_command(folders, baseline),
        "baseline_command": _report_command(folders, settings[0].name),
        "environment": " ".join(environment(sweep.environment) for sweep in sweeps)
        or "On what these runs were made was not recorded: they are of no sweep.",
    }


def _shared(configs: Sequence[Values]) -> list[str]:
    """What all settings have in common that is not a default."""
    told = [changes(config) for config in configs]
    always = [f"rounds={config['rounds']}" for config in configs]
    lines = [line for line in told[0] if all(line in other for other in told)]
    return [*(always[:1] if len(set(always)) == 1 else []), *lines]


def _commands(sweeps: Sequence[Sweep], settings: Sequence[Setting]) -> list[str]:
    of_sweeps = {sweep.directory for sweep in sweeps}
    told = [f"fedgh run -m {shlex.join(sweep.overrides)}" for sweep in sweeps]
    for run in (run for setting in settings for run in setting.runs):
        if run.directory.resolve().parent not in of_sweeps and (run.directory / LAUNCH).exists():
            told.append(f"fedgh run {shlex.join(Launch.read(run.directory).overrides)}")
    return told


def _report_command(folders: Sequence[Path], baseline: str | None) -> str:
    named = [] if baseline is None else ["--baseline", baseline]
    return f"fedgh report {shlex.join([*map(str, folders), *named])}"


def _summary(settings: Sequence[Setting], sweeps: Sequence[Sweep]) -> str:
    runs = [run for setting in settings for run in setting.runs]
    seeds = sorted({run.values["seed"] for run in runs})
    parts = [
        f"{count(len(settings), 'setting')}, {count(len(runs), 'run')}",
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}",
        f"data set {' and '.join(sorted({str(run.values['dataset.spec']) for run in runs}))}",
    ]
    ended = [sweep.has_result(job) for sweep in sweeps for job in sweep.jobs]
    if ended:
        parts.append(f"{sum(ended)} of {count(len(ended), 'job')} completed")
    return "; ".join(parts) + "."


def _line(setting: Setting, run: Outcome) -> dict[str, object]:
    seeds = {key: value for key, value in run.seeds().items() if key == "seed" or value != run.values["seed"]}
    tracked = Tracking.read(run.directory) if (run.directory / TRACKING).exists() else None
    url = tracked.url if tracked and (tracked.url or "").startswith("https://") else None
    return {
        "name": run.directory.name,
        "setting": setting.title,
        "seed": ", ".join(str(value) if key == "seed" else f"{key}={value}" for key, value in seeds.items()),
        "result": run.result,
        "url": url,
        "sync": tracked.sync if tracked else None,
    }


def _shown(settings: Sequence[Setting], against: Setting | None) -> list[Setting]:
    """The settings that are drawn: all, or the best and the baseline where there are too many to tell apart."""
    if len(settings) <= MOST_SETTINGS:
        return list(settings)
    best = sorted(settings, key=lambda setting: -float(np.mean([run.result.score or 0.0 for run in setting.runs])))
    kept = set(best[:MOST_SETTINGS])
    if against is not None and against not in kept:
        kept = {*best[: MOST_SETTINGS - 1], against}
    return [setting for setting in settings if setting in kept]
