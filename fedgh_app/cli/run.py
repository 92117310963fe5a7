"""``fedgh run``, of one run and of a sweep, and ``fedgh list``, what it chooses from."""

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table

from fedgh_app.cli.terminal import console, fail, say
from fedgh_app.config.choices import CONF, groups
from fedgh_app.config.compose import compose_config, expand_sweep, quoted, run_name
from fedgh_app.errors import RunFailed, UserError
from fedgh_app.runs.directory import LOG

HELP, SWEEP = ("--help", "-h"), ("-m", "--multirun")


def run(context: typer.Context) -> None:
    """Run a federation: fedgh run [OVERRIDES…] [-m]. `fedgh list` shows the choices; -m sweeps over commas;
    resume=RUN goes on with a run that was interrupted, -m resume=SWEEP with a sweep."""
    flags = [argument for argument in context.args if argument.startswith("-")]
    overrides = [argument for argument in context.args if not argument.startswith("-")]
    if any(flag in HELP for flag in flags):
        console.print(context.get_help(), highlight=False)
        return
    for flag in flags:
        if flag not in SWEEP:
            raise UserError(f"{flag}: no such option; expected -m, GROUP=CHOICE and KEY=VALUE")
    if flags:
        run_sweep(overrides)
    else:
        run_one(overrides)


def run_one(overrides: Sequence[str]) -> None:
    """One run, new or resumed; ends the command with the status that says how it went."""
    config = compose_config(overrides)
    if config.resume is not None:
        from fedgh_app.runs.resumption import resumed
        from fedgh_app.runs.sweep import SWEEP

        directory = Path(config.resume).expanduser().resolve()
        if (directory / SWEEP).exists():
            raise UserError(f"resume={directory}: holds a sweep; expected fedgh run -m to go on with it")
        overrides = resumed(directory, overrides)
        config = compose_config(overrides)
    directory = Path(config.run_dir or f"runs/{run_name(config)}")
    whole = directory.absolute()

    # Only now: what is misspelt is told without waiting for torch.
    from fedgh_app.runs.checkpoints import index_files
    from fedgh_app.runtimes.launcher import launch
    from fedgh_app.runtimes.progress import print_result

    try:
        print_result(launch(overrides, whole), whole, console)
    except RunFailed as error:
        hint = f"; to go on: fedgh run resume={quoted(whole)}" if index_files(whole) else ""
        fail(f"{error} (log: {whole / LOG}{hint})", 1)
    except KeyboardInterrupt:
        fail(f"stopped; to go on: fedgh run resume={quoted(directory)}", 130)


def run_sweep(overrides: Sequence[str]) -> None:
    """A sweep, new or going on."""
    resume = [item.partition("=")[2] for item in overrides if item.startswith("resume=")]
    overrides = [item for item in overrides if not item.startswith("resume=")]
    # Every job, before the first one starts.
    jobs = [] if resume else [compose_config(job) for job in expand_sweep(overrides)]

    from fedgh_app.runs.sweep import Sweep
    from fedgh_app.runtimes.sweep import print_status, run_job

    if resume:
        folder = Path(compose_config([f"resume={resume[-1]}"]).resume).expanduser().resolve()
        sweep = Sweep.read(folder).changed(overrides)
        for planned in sweep.jobs:
            compose_config(planned.overrides)
    else:
        folder = Path(jobs[0].run_dir or f"runs/sweep-{time.strftime('%Y%m%d-%H%M%S')}").expanduser().resolve()
        grouped = all(job.tracking.name == "wandb" and job.tracking.group is None for job in jobs)
        asked = [item for item in overrides if not item.startswith("run_dir=")]
        sweep = Sweep.planned(folder, asked, folder.name if grouped else None)
    with sweep.held():
        try:
            for job in sweep.jobs:
                run_job(sweep, job, console)
        except (KeyboardInterrupt, SystemExit) as stop:
            print_status(sweep, console)
            fail(f"stopped; to go on: {sweep.command}", getattr(stop, "code", None) or 130)
        print_status(sweep, console)
    say(f"to compare them: fedgh report {sweep.directory}")
    if not sweep.completed:
        fail(f"not all jobs completed; to try the others again: {sweep.command}", 1)


def list_choices() -> None:
    """Show the config groups, their choices and what each is."""
    table = Table(title="fedgh run GROUP=CHOICE …")
    for column in ("group", "choice", "what it is"):
        table.add_column(column, overflow="fold")
    for group, choices in groups().items():
        for place, choice in enumerate(choices):
            lines = (CONF / group / f"{choice}.yaml").read_text().splitlines()
            comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
            said = " ".join(line.lstrip("# ") for line in comment if "@package" not in line)
            table.add_row(group if place == 0 else "", choice, escape(said))
        table.add_section()
    console.print(table)
