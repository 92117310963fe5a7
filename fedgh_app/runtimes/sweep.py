"""The jobs of a sweep, one after the other, each in a process of its own.

A job is the ``fedgh run`` that a user would type: whatever ends it, an exception or the kernel, ends it alone.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedgh_app.config.compose import compose_config, quoted
from fedgh_app.errors import UserError, first_line
from fedgh_app.runs import processes, resumption
from fedgh_app.runs.checkpoints import newest
from fedgh_app.runs.records import LAUNCH
from fedgh_app.runs.result import Result
from fedgh_app.runs.resumption import key_of
from fedgh_app.runs.sweep import Job, Sweep, may_change
from fedgh_app.words import percentage, short

FEDGH_RUN = (sys.executable, "-P", "-c", "from fedgh_app.cli import main; main()", "run")
STOP_SECONDS = 60.0  # for a job to end its own processes


def run_job(sweep: Sweep, job: Job, console: Console) -> None:
    """Run a job unless it is completed, and note how it ended.

    Raises:
        KeyboardInterrupt, SystemExit: the sweep was stopped; the job has ended.
    """
    heading = f"job {job.number} ({job.number + 1} of {len(sweep.jobs)}): {' '.join(sweep.differing(job))}"
    if sweep.skips(job):
        console.print(escape(f"{heading}: completed before, skipped"), soft_wrap=True, highlight=False)
        return
    started, before = time.monotonic(), job.status
    try:
        arguments = _arguments(sweep, job)
        if before != "waiting":
            again = "goes on from its checkpoint" if key_of(arguments[0]) == "resume" else "starts anew"
            heading += f" ({before} before, {again})"
        console.print(f"[bold]{escape(heading)}[/bold]", soft_wrap=True, highlight=False)
        job.status, job.reason, job.attempts = "running", None, job.attempts + 1
        sweep.save()
        job.reason = _attempt(sweep, job, arguments)
        job.status = "completed" if job.reason is None else "failed"
    # A job that cannot even be started must not take the others with it.
    except (UserError, OSError) as error:
        job.status, job.reason = "failed", first_line(error)
        print(f"fedgh: job {job.number}: {job.reason}", file=sys.stderr)
    except BaseException:
        job.status, job.reason = "interrupted", None
        raise
    finally:
        job.seconds += time.monotonic() - started
        sweep.save()


def print_status(sweep: Sweep, console: Console) -> None:
    """The table of all jobs."""
    completed = [job for job in sweep.jobs if job.status == "completed" and sweep.has_result(job)]
    results = {job.number: Result.read(sweep.folder(job)) for job in completed}
    metrics = " / ".join(dict.fromkeys(short(result.metric) for result in results.values()))
    table = Table(title=f"sweep {escape(sweep.directory.name)}")
    table.add_column("job", justify="right")
    table.add_column("what differs", overflow="fold", min_width=16)
    table.add_column("status", overflow="fold")
    table.add_column(f"{escape(metrics) or 'score'} (%)", justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    colours = {"completed": "green", "failed": "red", "interrupted": "yellow"}
    for job in sweep.jobs:
        status = "skipped: completed before" if sweep.skips(job) else job.status
        told = escape(f"{status}: {job.reason}" if job.reason else status)
        colour = colours.get(job.status)
        score = results[job.number].score if job.number in results else None
        table.add_row(
            str(job.number),
            escape(" ".join(sweep.differing(job))),
            f"[{colour}]{told}[/{colour}]" if colour else told,
            percentage(score),
            f"{job.seconds:.0f}" if job.attempts else "-",
        )
    console.print(table)


def _arguments(sweep: Sweep, job: Job) -> list[str]:
    """What to call ``fedgh run`` with; what a run left that has no checkpoint to go on from is cleared away."""
    folder = sweep.folder(job)
    if _can_go_on(folder, job):
        return [f"resume={quoted(folder)}", *filter(may_change, job.overrides)]
    if folder.exists() and any(folder.iterdir()):
        resumption.clear(folder)
    return [f"run_dir={quoted(folder)}", *job.overrides]


def _can_go_on(folder: Path, job: Job) -> bool:
    if not (folder / LAUNCH).exists():
        return False
    try:
        newest(folder, compose_config(job.overrides).rounds)
    except UserError:
        return False
    return True


def _attempt(sweep: Sweep, job: Job, arguments: Sequence[str]) -> str | None:
    """Run ``fedgh run`` to its end; None, or one line on why it failed."""
    sys.stdout.flush()
    with sweep.log(job).open("ab") as log:
        log.write(f"$ fedgh run {shlex.join(arguments)}\n".encode())
        process = subprocess.Popen(
            [*FEDGH_RUN, *arguments],
            cwd=sweep.cwd,
            env={**os.environ, processes.MARK: sweep.mark},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            process_group=0,  # Ctrl-C is ours to pass on
        )
        said = _Said(process.stderr, log)
        try:
            status = process.wait()
        except BaseException:
            said.quiet = True
            processes.end(process, sweep.mark, STOP_SECONDS)
            raise
        finally:
            said.join(2.0)  # not to the end: what outlives the job may hold the pipe
    if status == 0 and sweep.has_result(job):
        return None
    if status < 0:
        resumption.end_processes(sweep.folder(job))
        return f"killed by {signal.Signals(-status).name}"
    return (
        said.last.removeprefix("fedgh: ").partition(" (log: ")[0] or f"ended with status {status} and without a result"
    )


class _Said(threading.Thread):
    """Passes on what a job says on stderr to its log and, unless ``quiet``, the terminal; ``last`` is its last line."""

    def __init__(self, pipe: IO[bytes] | None, log: IO[bytes]) -> None:
        super().__init__(daemon=True)
        assert pipe is not None
        self.pipe, self.log = pipe, log
        self.last, self.quiet = "", False
        self.start()

    def run(self) -> None:
        """Until nobody can write any more."""
        for line in self.pipe:
            text = line.decode(errors="replace")
            self.last = text.strip() or self.last
            if not self.quiet:
                sys.stderr.write(text)
                sys.stderr.flush()
            with contextlib.suppress(ValueError, OSError):  # the job has ended and its log is closed; the disk is full
                self.log.write(line)
                self.log.flush()
