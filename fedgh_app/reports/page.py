"""The report on a sweep, or on any runs, as a page to read: ``report.html``, all in one file, and ``report.md``."""

from __future__ import annotations

import base64
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from omegaconf import DictConfig

from fedgh_app.config.changes import changes
from fedgh_app.data import site
from fedgh_app.errors import UserError
from fedgh_app.reports import figures as report_figures
from fedgh_app.reports.comparison import FEWEST_FOR_RANKS, Difference
from fedgh_app.reports.figures import FAINT, INK, MINUS, PAPER, Cosines, Curve, colour_of, cosines_of, curve_of
from fedgh_app.reports.markdown import count
from fedgh_app.reports.settings import (
    Outcome,
    Setting,
    baseline_of,
    compare,
    difference_texts,
    differences,
    keypoints_of,
    p_text,
    percent_text,
    spread_text,
)
from fedgh_app.runs.records import LAUNCH, TRACKING, Launch, Tracking
from fedgh_app.runs.result import RESULT
from fedgh_app.runs.sweep import SWEEP, Job, Machine
from fedgh_app.runtimes.sweep import Sweep, command
from fedgh_app.vision.files import replacing

FIGURES = "report-figures"
MOST_REJECTED = 40  # rows of a table that people still read


def write(settings: Sequence[Setting], folders: Sequence[Path], out: Path, baseline: str | None = None) -> list[Path]:
    """Write the report.

    Args:
        settings: what is compared.
        folders: where the runs were found; sweeps among them tell of their failed jobs.
        out: folder to write to, made if need be.
        baseline: the setting that the others are compared with.

    Returns:
        The page and the Markdown file.

    Raises:
        UserError: ``out`` cannot be written to, or there is no such baseline.
    """
    content = _content(settings, folders, baseline)
    texts = {out / name: _render(name, content) for name in ("report.html", "report.md")}
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = out / FIGURES
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.svg"):
            old.unlink()
        for figure in filter(None, [*content["figures"].values(), *content["curves"], *content["cosines"]]):
            (folder / f"{figure['name']}.svg").write_text(figure["svg"], encoding="utf-8", errors="replace")
        for file, text in texts.items():
            with replacing(file) as draft:
                draft.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"--out {out}: cannot write there ({error.strerror})") from None
    return list(texts)


def _render(name: str, content: Mapping[str, Any]) -> str:
    html = name.startswith("report.html")
    environment = Environment(
        loader=PackageLoader("fedgh_app.reports"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["is_best"] = _is_best
    environment.filters |= {
        "cell": _cell,
        "data": _data_uri,
        "percent": lambda value: _dash(percent_text(value)),
        "epsilon": lambda value: _dash("-" if value is None else f"{value:.3g}"),
        "p": lambda value: _dash(p_text(value)),
        "spread": lambda found: _dash(spread_text(found)),
        "strong": lambda text, found, best: f"**{text}**" if _is_best(found, best) else text,
    }
    text = environment.get_template(f"{name}.jinja").render(content)
    return text if html else re.sub(r"\n{3,}", "\n\n", text)


def _content(settings: Sequence[Setting], folders: Sequence[Path], baseline: str | None) -> dict[str, Any]:
    """What both forms of the report say."""
    rows = compare(settings, baseline)
    against = baseline_of(settings, baseline) if baseline is not None else None
    gained = differences(settings, against) if against else {}
    sweeps = [Sweep.read(folder.resolve()) for folder in folders if (folder / SWEEP).exists()]
    configs = [setting.runs[0].config for setting in settings]
    metrics = {site.headline(config) for config in configs}
    metric = metrics.pop() if len(metrics) == 1 else "PCK"
    keypoints = keypoints_of(rows)
    runs = [_line(setting, run) for setting in settings for run in setting.runs]
    rejected = [
        {"setting": setting.title, "run": run.directory.name, **dict(item)}
        for setting in settings
        for run in setting.runs
        for item in run.result.rejected
    ]
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
        if not _has_ended(sweep, job)
    ]
    shown = _shown(settings, against)
    curves = {setting: curve for setting in shown if (curve := curve_of(setting)) is not None}
    cosines = {setting: found for setting in shown if (found := cosines_of(setting)) is not None}
    figures = {
        "outcomes": _figure("outcomes", report_figures.outcomes(settings, metric), _alt_outcomes(rows, metric)),
        "forest": _figure("differences", report_figures.forest(gained, against.name), _alt_forest(gained, against.name))
        if against and any(found.mean is not None for found in gained.values())
        else None,
    }
    return {
        "title": f"Sweep {folders[0].resolve().name}" if sweeps and len(folders) == 1 else "Runs compared",
        "summary": _summary(settings, sweeps, configs),
        "metric": metric,
        "table": list(zip(settings, rows, strict=True)),
        "colours": [colour_of(place).replace(INK, "var(--ink)") for place in range(len(settings))],
        "best": {key: _largest([row[key] for row in rows]) for key in ("pck", "worst_client", "heatmap_accuracy")},
        "keypoints": keypoints,
        "best_keypoints": {name: _largest([row["per_keypoint"].get(name) for row in rows]) for name in keypoints},
        "baseline": against,
        "differences": [(name, found, [*map(_dash, difference_texts(vars(found)))]) for name, found in gained.items()],
        "private": any(row["epsilon"] is not None for row in rows),
        "ranked": any(found.p_wilcoxon is not None for found in gained.values()),
        "figures": figures,
        "curves": _curve_figures(settings, curves, metric),
        "cosines": _cosine_figures(cosines),
        "rejected": rejected,
        "most_rejected": MOST_REJECTED,
        "unfinished": unfinished,
        "jobs": [job for sweep in sweeps for job in sweep.jobs],
        "runs": runs,
        "tracked": any(run["url"] or run["sync"] for run in runs),
        "shared": _shared(configs),
        "commands": _commands(folders, sweeps, settings),
        "report_command": _report_command(folders, baseline),
        "baseline_command": _report_command(folders, settings[0].name),
        "resume_commands": [command(sweep.directory) for sweep in sweeps if sweep.jobs and unfinished],
        "notes": _notes(settings, shown, curves, cosines, gained, against, sweeps),
        "folder": FIGURES,
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "version": metadata.version("fedgh"),
    }


def _summary(settings: Sequence[Setting], sweeps: Sequence[Sweep], configs: Sequence[DictConfig]) -> str:
    runs = [run for setting in settings for run in setting.runs]
    seeds = sorted({run.config.seed for run in runs})
    parts = [
        f"{count(len(settings), 'setting')}, {count(len(runs), 'run')}",
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}",
        f"data set {' and '.join(sorted({str(config.dataset.spec) for config in configs}))}",
    ]
    ended = [_has_ended(sweep, job) for sweep in sweeps for job in sweep.jobs]
    if ended:
        parts.append(f"{sum(ended)} of {count(len(ended), 'job')} completed")
    return "; ".join(parts) + "."


def _has_ended(sweep: Sweep, job: Job) -> bool:
    """Whether the job's result is among those compared, also where its run was taken up by itself."""
    return (sweep.folder(job) / RESULT).exists()


def _notes(
    settings: Sequence[Setting],
    shown: Sequence[Setting],
    curves: Mapping[Setting, Curve],
    cosines: Mapping[Setting, Cosines],
    gained: Mapping[str, Difference],
    against: Setting | None,
    sweeps: Sequence[Sweep],
) -> dict[str, str]:
    """The sentences of the report: how its numbers came about, and what they do not tell."""
    fewest = min((found.pairs for found in gained.values()), default=0)
    tested = sum(found.p is not None for found in gained.values())
    whose = {setting.runs[0].result.evaluated for setting in settings}
    where = "on the test images that the server sees" if whose == {"central"} else "on the clients' own test images"
    if len(whose) > 1:
        where = "on the test images that the server sees, or on the clients' own where the name says so"
    best = "settings with the highest mean" if against is None else "settings that are best, or the baseline,"
    only = f" The {len(shown)} {best} are drawn." if len(shown) < len(settings) else ""
    several = any(len(setting.runs) > 1 for setting in settings)
    band = " The band is one standard deviation to each side, over the runs." if several else ""
    unlike = [setting.title for setting in shown if setting not in cosines]
    return {
        "results": (
            f"Mean ± sample standard deviation over the runs of a setting, which differ in their seeds alone, {where}. "
            "Bold is the highest mean of a column, whether or not chance explains it. Worst client: the lowest result "
            "of a client on its own test images, in each run."
        ),
        "no_baseline": "No setting was named as the baseline, so nothing was tested. To compare the others with one:",
        "differences": ""
        if against is None
        else (
            f"PCK minus that of {against.name}, in percentage points, in pairs of runs with the same seeds. The "
            "interval has 95 % confidence by Student's t, each for itself; p is of the two-sided paired t-test, and "
            f"p (Holm) the same adjusted for {count(tested, 'comparison')}."
        ),
        "few_pairs": ""
        if fewest >= FEWEST_FOR_RANKS
        else (
            f"With {count(fewest, 'pair')} these tests can tell little: a t-test leans on the differences being "
            "normally distributed, and a rank test, which does not, cannot come below p = 0.05 with fewer than "
            f"{FEWEST_FOR_RANKS} pairs and is shown only from there on. Read the interval: it says how large the "
            "difference may be either way. More seeds make it narrower."
        ),
        "curves": "No run has a history of evaluations."
        if not curves
        else (
            f"Mean over the runs of a setting, by round and by wall time.{band}{only} Time can be compared where the "
            "runs had the machine to themselves."
        ),
        "cosines": "No strategy of these runs reports cosines between the clients' updates."
        if not cosines
        else (
            "Cosines between the updates that two clients sent in the same round, averaged over the runs: blue where "
            f"they pull the same way, red where they conflict.{only}"
            + (f" Without cosines: {', '.join(unlike)}." if unlike else "")
        ),
        "unfinished": "They are in no table above. To try them again:",
        "environment": " ".join(_environment(sweep.environment) for sweep in sweeps)
        or "On what these runs were made was not recorded: they are of no sweep.",
    }


def _environment(machine: Machine) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    commit = ""
    if machine.commit:
        commit = f", commit {machine.commit.rstrip('+')}" + (" with changes" if machine.commit.endswith("+") else "")
    return f"Run on {machine.system} with {count(machine.cores, 'core')}, Python {machine.python}, {versions}{commit}."


def _figure(name: str, figure: Figure, alt: str, **more: Any) -> dict[str, Any]:
    width, height = (round(96 * side) for side in figure.get_size_inches())  # CSS pixels
    given = {"caption": "", "when": ""} | more
    return {"name": name, "svg": report_figures.svg(figure), "alt": alt, "width": width, "height": height, **given}


def _alt_outcomes(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    means = "; ".join(f"{row['setting']} {percent_text(_mean(row['pck']))} %" for row in rows)
    return f"{metric} of every run as a dot, a line for each setting, its mean marked: {means}."


def _alt_forest(gained: Mapping[str, Difference], baseline: str) -> str:
    told = "; ".join(
        f"{name} {texts[0]} ({texts[1]})" for name, found in gained.items() if (texts := difference_texts(vars(found)))
    )
    return f"Difference from {baseline} in percentage points, with its 95 % confidence interval: {told}."


def _curve_figures(settings: Sequence[Setting], curves: Mapping[Setting, Curve], metric: str) -> list[dict[str, Any]]:
    if not curves:
        return []
    named = {(settings.index(setting), setting.title): curve for setting, curve in curves.items()}
    ends = "; ".join(f"{name} ends at {100 * curve.mean[-1]:.1f} %" for (_, name), curve in named.items())
    return [
        _figure(
            f"curves-{over}",
            report_figures.learning_curves(named, metric, over),
            f"Mean {metric} over {over}, a curve for each setting: {ends}.",
            caption=f"By {'round' if over == 'rounds' else 'wall time'}",
        )
        for over in ("rounds", "seconds")
    ]


def _cosine_figures(cosines: Mapping[Setting, Cosines]) -> list[dict[str, Any]]:
    """Of each setting two heatmaps, all with the same colours for the same cosines."""
    every = [matrix[np.isfinite(matrix)] for found in cosines.values() for matrix in (found.mean, found.last)]
    largest = max([0.1, *(float(np.abs(values).max()) for values in every if values.size)])
    made = []
    for place, (setting, found) in enumerate(cosines.items()):
        for when, said in (("mean", "mean over all rounds"), ("last", "last round")):
            matrix = getattr(found, when)
            values = matrix[np.isfinite(matrix)]
            spread = (
                f"from {values.min():z.2f} to {values.max():z.2f}".replace("-", MINUS)
                if values.size
                else "none measured"
            )
            made.append(
                _figure(
                    f"cosines-{place}-{when}",
                    report_figures.cosine_heatmap(found, setting.name, when, largest),
                    f"Cosines between the updates of {len(found.clients)} clients, {setting.name}, {said}: {spread}.",
                    when=when,
                    caption=f"{spread}; {100 * (values < 0).mean():.0f} % of the pairs negative" if values.size else "",
                )
            )
    return made


def _shown(settings: Sequence[Setting], against: Setting | None) -> list[Setting]:
    """The settings that are drawn: all, or the best and the baseline where there are too many to tell apart."""
    if len(settings) <= report_figures.MOST_SETTINGS:
        return list(settings)
    by_pck = sorted(settings, key=lambda setting: -float(np.mean([run.result.score or 0.0 for run in setting.runs])))
    kept = set(by_pck[: report_figures.MOST_SETTINGS])
    if against is not None and against not in kept:
        kept = {*by_pck[: report_figures.MOST_SETTINGS - 1], against}
    return [setting for setting in settings if setting in kept]


def _mean(spread: Mapping[str, float | None] | None) -> float | None:
    return None if spread is None else spread["mean"]


def _largest(spreads: Sequence[Mapping[str, float | None] | None]) -> float | None:
    """The highest mean; None where there is nothing to be higher than."""
    known = [mean for spread in spreads if (mean := _mean(spread)) is not None]
    return max(known) if len(known) > 1 else None


def _is_best(spread: Mapping[str, float | None] | None, best: float | None) -> bool:
    return best is not None and _mean(spread) == best


def _line(setting: Setting, run: Outcome) -> dict[str, Any]:
    """A run's line in the list of all of them."""
    seeds = {key: value for key, value in run.seeds().items() if key == "seed" or value != run.config.seed}
    tracked = Tracking.read(run.directory) if (run.directory / TRACKING).exists() else None
    url = str(tracked.url) if tracked else ""
    return {
        "name": run.directory.name,
        "setting": setting.title,
        "seed": ", ".join(str(value) if key == "seed" else f"{key}={value}" for key, value in seeds.items()),
        "result": run.result,
        "url": url if url.startswith("https://") else None,
        "sync": tracked.sync if tracked else None,
    }


def _shared(configs: Sequence[DictConfig]) -> list[str]:
    """What all settings have in common that is not a default."""
    told = [changes(config) for config in configs]
    always = [f"rounds={config.rounds}" for config in configs]
    lines = [line for line in told[0] if all(line in other for other in told)]
    return [*(always[:1] if len(set(always)) == 1 else []), *lines]


def _commands(folders: Sequence[Path], sweeps: Sequence[Sweep], settings: Sequence[Setting]) -> list[str]:
    """The commands by which the runs were made."""
    of_sweeps = {sweep.directory for sweep in sweeps}
    found = [f"fedgh run -m {shlex.join(sweep.overrides)}" for sweep in sweeps]
    for run in (run for setting in settings for run in setting.runs):
        if run.directory.resolve().parent not in of_sweeps and (run.directory / LAUNCH).exists():
            found.append(f"fedgh run {shlex.join(Launch.read(run.directory).overrides)}")
    return found


def _report_command(folders: Sequence[Path], baseline: str | None) -> str:
    named = [] if baseline is None else ["--baseline", baseline]
    return f"fedgh report {shlex.join([*map(str, folders), *named])}"


def _data_uri(svg: str) -> str:
    """The figure for the page itself, whose colours it takes where a reader wants a dark one."""
    for colour, name in ((INK, "ink"), (PAPER, "paper"), (FAINT, "faint")):
        svg = svg.replace(colour, f"var(--{name})")
    style = (
        f"<style>:root{{--ink:{INK};--paper:{PAPER};--faint:{FAINT}}}"
        "@media (prefers-color-scheme:dark){:root{--ink:#e3e6ea;--paper:#1b1f24;--faint:#7c8590}}</style>"
    )
    svg = re.sub(r"(<svg[^>]*>)", lambda found: found[1] + style, svg, count=1)
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _dash(text: str) -> str:
    """A dash for what there is not, and a minus that is as wide as the plus."""
    return "\N{EN DASH}" if text == "-" else re.sub(r"(^|to )-", f"\\1{MINUS}", text)


def _cell(text: object) -> str:
    """Somebody else's text in a cell of a Markdown table."""
    return " ".join(str(text).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
