"""A sweep: runs one after the other, each in a process of its own, and the record by which it goes on.

A job is the ``fedgh run`` that a user would type: whatever ends it, an exception or the kernel, ends it alone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedgh_app.config.compose import compose_config, expand_sweep, quoted
from fedgh_app.errors import UserError, first_line
from fedgh_app.runs import processes, resumption
from fedgh_app.runs.checkpoints import newest
from fedgh_app.runs.records import FAILURE, LAUNCH
from fedgh_app.runs.result import RESULT, Result
from fedgh_app.runs.resumption import key_of
from fedgh_app.runs.sweep import SWEEP, Job, Machine, SweepRecord
from fedgh_app.runtimes.environment import environment
from fedgh_app.words import percentage, short

# What is no part of what a job computes, nor says what clients it has.
MAY_CHANGE = ("runtime.", "tracking", "tracking.", "round_timeout", "keep_checkpoints")
FEDGH_RUN = (sys.executable, "-P", "-c", "from fedgh_app.cli import main; main()", "run")
STOP_SECONDS = 60.0  # for a job to end its own processes


class Sweep:
    """The jobs of a sweep, and where they stand; kept in ``sweep.json``.

    Args:
        directory: the sweep's folder; job n runs in the folder n below.
        overrides: the sweep as it was asked for.
        jobs: its jobs, of which the last key varies fastest.
        cwd: the working directory, in which relative paths of the overrides are meant.
    """

    def __init__(self, directory: Path, overrides: Sequence[str], jobs: Sequence[Job], cwd: Path, **more: Any) -> None:
        self.directory = directory
        self.overrides = list(overrides)
        self.jobs = list(jobs)
        self.cwd = cwd
        self.started: float = more.get("started", time.time())
        self.environment: Machine = more.get("environment") or Machine(**environment())
        self.mark = secrets.token_hex(8)
        self.skipped: set[int] = set()

    @classmethod
    def planned(cls, directory: Path, overrides: Sequence[str], group: str | None = None) -> Sweep:
        """A new sweep, or the one that the folder holds of the same jobs, with ``overrides`` for what may change.

        Args:
            directory: the sweep's folder.
            overrides: those of the sweep.
            group: W&B's group of a new sweep; it stays as it is in one that goes on.

        Raises UserError where the folder holds a sweep of other jobs, or runs that belong to none.
        """
        if (directory / SWEEP).exists():
            before = cls.read(directory)
            changes = [item for item in overrides if _may_change(item)]
            if _fixed(expand_sweep(overrides)) != _fixed([job.overrides for job in before.jobs]):
                raise UserError(
                    f"run_dir={directory}: holds a sweep of other jobs; expected another run_dir, "
                    f"or {command(directory)} to go on with it"
                )
            return before.changed(changes)
        if any(directory.glob(f"*/{LAUNCH}")) or (directory / LAUNCH).exists():
            raise UserError(f"run_dir={directory}: holds runs of no sweep; expected a new or empty folder")
        overrides = [*overrides, *([f"tracking.group={quoted(Path(group))}"] if group else [])]
        jobs = [Job(number=number, overrides=job) for number, job in enumerate(expand_sweep(overrides))]
        return cls(directory, overrides, jobs, Path.cwd())

    @classmethod
    def read(cls, directory: Path) -> Sweep:
        """The sweep that a folder holds; UserError where it holds none, or its record is damaged."""
        file = directory / SWEEP
        if not file.exists():
            raise UserError(
                f"{directory}: found no {SWEEP}, expected the folder of an earlier fedgh run -m "
                "(of one run: without -m)"
            )
        record = SweepRecord.read(directory)
        if [job.number for job in record.jobs] != list(range(len(record.jobs))):
            raise UserError(f"{file}: jobs: expected the numbers 0, 1, 2 and so on")
        for item in [*record.overrides, *(item for job in record.jobs for item in job.overrides)]:
            if key_of(item).startswith(("hydra", "-")):
                raise UserError(f"{file}: found {item!r}, expected overrides of runs alone")
        # Any text may stand there, and Path.is_dir() raises at some.
        cwd = Path(record.cwd) if os.path.isdir(record.cwd) else Path.cwd()  # noqa: PTH112  # as said above
        known = {"started": record.started, "environment": record.environment}
        sweep = cls(directory, record.overrides, record.jobs, cwd, **known)
        # A copy knows the mark of the original, whose processes are not its own to end.
        if record.directory == str(directory):
            sweep.mark = record.mark
        return sweep

    def changed(self, changes: Sequence[str]) -> Sweep:
        """This sweep, with ``changes`` to what may change; UserError where one would make its jobs others."""
        for item in changes:
            if not _may_change(item):
                raise UserError(
                    f"{item}: a sweep that goes on keeps its settings; expected only runtime.KEY, tracking, "
                    "round_timeout, keep_checkpoints to change"
                )
        replaced = {key_of(item) for item in changes}
        overrides = [*(item for item in self.overrides if key_of(item) not in replaced), *changes]
        jobs = expand_sweep(overrides)
        if _fixed(jobs) != _fixed([job.overrides for job in self.jobs]):
            raise UserError(f"{' '.join(changes)}: is swept over; expected one value that all jobs share")
        self.overrides = overrides
        for job, now in zip(self.jobs, jobs, strict=True):
            job.overrides = now
        return self

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the sweep's folder; what a sweep that was killed left running is ended first.

        Raises UserError where another process holds it.
        """
        with resumption.locked(self.directory, "sweep"):
            processes.end_marked(self.mark)
            self.mark = secrets.token_hex(8)
            for job in self.jobs:
                if job.status != "completed" and self._is_whole(job):
                    job.status, job.reason = "completed", None
                elif job.status == "completed" and not (self.folder(job) / RESULT).exists():
                    job.status = "waiting"  # somebody deleted it, to have it again
                elif job.status == "running":
                    job.status, job.reason = "interrupted", "the sweep was killed"
            self.skipped = {job.number for job in self.jobs if job.status == "completed"}
            self.save()
            yield

    def folder(self, job: Job) -> Path:
        """The job's run directory."""
        return self.directory / str(job.number)

    def log(self, job: Job) -> Path:
        """What the job said on stderr, attempt after attempt."""
        return self.directory / f"{job.number}.log"

    def save(self) -> None:
        """Write the record; a full disk must not end the sweep, whose run directories tell what is done."""
        record = SweepRecord(
            overrides=self.overrides,
            cwd=str(self.cwd),
            directory=str(self.directory),
            mark=self.mark,
            started=self.started,
            environment=self.environment,
            jobs=self.jobs,
        )
        try:
            record.write(self.directory)
        except OSError as error:
            print(f"fedgh: {self.directory / SWEEP}: {first_line(error)}; the sweep goes on", file=sys.stderr)

    def run(self, job: Job, console: Console) -> None:
        """Run a job unless it is completed, and note how it ended.

        Raises:
            KeyboardInterrupt, SystemExit: the sweep was stopped; the job has ended.
        """
        heading = f"job {job.number} ({job.number + 1} of {len(self.jobs)}): {' '.join(self.differing(job))}"
        if job.number in self.skipped:
            console.print(escape(f"{heading}: completed before, skipped"), soft_wrap=True, highlight=False)
            return
        started, before = time.monotonic(), job.status
        try:
            arguments = self._arguments(job)
            if before != "waiting":
                again = "goes on from its checkpoint" if key_of(arguments[0]) == "resume" else "starts anew"
                heading += f" ({before} before, {again})"
            console.print(f"[bold]{escape(heading)}[/bold]", soft_wrap=True, highlight=False)
            job.status, job.reason, job.attempts = "running", None, job.attempts + 1
            self.save()
            job.reason = self._attempt(job, arguments)
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
            self.save()

    def differing(self, job: Job) -> list[str]:
        """The overrides of a job that other jobs do not share."""
        shared = set.intersection(*(set(other.overrides) for other in self.jobs))
        return [item for item in job.overrides if item not in shared]

    @property
    def completed(self) -> bool:
        """Whether all jobs are."""
        return all(job.status == "completed" for job in self.jobs)

    def print_status(self, console: Console) -> None:
        """The table of all jobs."""
        completed = [job for job in self.jobs if job.status == "completed" and (self.folder(job) / RESULT).exists()]
        results = {job.number: Result.read(self.folder(job)) for job in completed}
        metrics = " / ".join(dict.fromkeys(short(result.metric) for result in results.values()))
        table = Table(title=f"sweep {escape(self.directory.name)}")
        table.add_column("job", justify="right")
        table.add_column("what differs", overflow="fold", min_width=16)
        table.add_column("status", overflow="fold")
        table.add_column(f"{escape(metrics) or 'score'} (%)", justify="right", no_wrap=True)
        table.add_column("seconds", justify="right", no_wrap=True)
        colours = {"completed": "green", "failed": "red", "interrupted": "yellow"}
        for job in self.jobs:
            status = "skipped: completed before" if job.number in self.skipped else job.status
            told = escape(f"{status}: {job.reason}" if job.reason else status)
            colour = colours.get(job.status)
            score = results[job.number].score if job.number in results else None
            table.add_row(
                str(job.number),
                escape(" ".join(self.differing(job))),
                f"[{colour}]{told}[/{colour}]" if colour else told,
                percentage(score),
                f"{job.seconds:.0f}" if job.attempts else "-",
            )
        console.print(table)

    def _is_whole(self, job: Job) -> bool:
        """Whether a run came to its end though nobody noted it; the result is the last that it writes."""
        folder = self.folder(job)
        return (folder / RESULT).exists() and not (folder / FAILURE).exists()

    def _arguments(self, job: Job) -> list[str]:
        """What to call ``fedgh run`` with; what a run left that has no checkpoint to go on from is cleared away."""
        folder = self.folder(job)
        if self._can_go_on(job):
            return [f"resume={quoted(folder)}", *filter(_may_change, job.overrides)]
        if folder.exists() and any(folder.iterdir()):
            resumption.clear(folder)
        return [f"run_dir={quoted(folder)}", *job.overrides]

    def _can_go_on(self, job: Job) -> bool:
        folder = self.folder(job)
        if not (folder / LAUNCH).exists():
            return False
        try:
            newest(folder, compose_config(job.overrides).rounds)
        except UserError:
            return False
        return True

    def _attempt(self, job: Job, arguments: Sequence[str]) -> str | None:
        """Run ``fedgh run`` to its end; None, or one line on why it failed."""
        sys.stdout.flush()
        with self.log(job).open("ab") as log:
            log.write(f"$ fedgh run {shlex.join(arguments)}\n".encode())
            process = subprocess.Popen(
                [*FEDGH_RUN, *arguments],
                cwd=self.cwd,
                env={**os.environ, processes.MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                process_group=0,  # Ctrl-C is ours to pass on
            )
            said = _Said(process.stderr, log)
            try:
                status = process.wait()
            except BaseException:
                said.quiet = True
                _stop(process, self.mark)
                raise
            finally:
                said.join(2.0)  # not to the end: what outlives the job may hold the pipe
        if status == 0 and (self.folder(job) / RESULT).exists():
            return None
        if status < 0:
            resumption.end_processes(self.folder(job))
            return f"killed by {signal.Signals(-status).name}"
        return (
            said.last.removeprefix("fedgh: ").partition(" (log: ")[0]
            or f"ended with status {status} and without a result"
        )


class _Said(threading.Thread):
    """Passes on what a job says on stderr, to the terminal and its log.

    Attributes:
        last: the last line.
        quiet: from now on only to the log.
    """

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


def _stop(process: subprocess.Popen[bytes], mark: str) -> None:
    """Let a job end its own processes, and end what is left after a while; a second Ctrl-C changes nothing."""
    ignored = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            processes.end_marked(mark)
            process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def command(directory: Path) -> str:
    """The command by which a sweep goes on."""
    return f"fedgh run -m {shlex.quote(f'resume={directory}')}"


def _may_change(item: str) -> bool:
    key = key_of(item)
    return any(key.startswith(name) if name.endswith(".") else key == name for name in MAY_CHANGE)


def _fixed(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of each job what may not change, in any order of its overrides."""
    return [sorted(item for item in job if not _may_change(item)) for job in jobs]
