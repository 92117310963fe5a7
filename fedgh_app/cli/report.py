"""``fedgh report``: runs compared."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedgh_app.cli.terminal import console


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or folders that hold them (a sweep).")],
    baseline: Annotated[
        str | None, typer.Option(help="Setting that the others are tested against, seed by seed, such as FedAvg.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html and report.md. [default: the sweep's own]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; pages only with --out.")] = False,
) -> None:
    """Compare runs: mean ± standard deviation over seeds, for each strategy. Of a sweep also as a page to read."""
    from fedgh_app.reports.statistics import compare, print_report, settings_of
    from fedgh_app.runs.result import RESULT

    settings = settings_of(runs)
    rows = compare(settings, baseline)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        print_report(rows, console)
        if out is None and len(runs) == 1 and not (runs[0] / RESULT).exists():
            out = runs[0]
    if out is not None:
        from fedgh_app.reports.page import write

        for file in write(settings, runs, out, baseline):
            print(file, file=sys.stderr if as_json else sys.stdout)
