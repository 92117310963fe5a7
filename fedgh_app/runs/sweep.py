"""``sweep.json``: the jobs of a sweep, and where they stand, by which it goes on."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from fedgh_app.config.compose import expand_sweep, quoted
from fedgh_app.errors import UserError, first_line
from fedgh_app.runs import processes, resumption
from fedgh_app.runs.environment import Machine, this_machine
from fedgh_app.runs.records import FAILURE, LAUNCH, Record, RecordFile, Seconds
from fedgh_app.runs.result import RESULT
from fedgh_app.runs.resumption import key_of

SWEEP = "sweep.json"
# What is no part of what a job computes, nor says what clients it has.
MAY_CHANGE = ("runtime.", "tracking", "tracking.", "round_timeout", "keep_checkpoints")

StoredPath = Annotated[Path, BeforeValidator(lambda value: Path(value) if isinstance(value, str) else value)]


class Job(Record):
    """One run of a sweep."""

    number: int  # its place in the sweep, and the name of its run directory
    overrides: list[str]  # what it is started with
    status: Literal["waiting", "running", "completed", "failed", "interrupted"] = "waiting"
    reason: str | None = None  # one line on why it failed
    seconds: Seconds = 0.0  # wall time of all its attempts
    attempts: int = 0  # how often it was started


class Sweep(RecordFile):
    """A sweep, as its folder keeps it; job n runs in the folder n below."""

    NAME = SWEEP
    EXPECTED = "what fedgh run -m wrote"
    overrides: list[str]  # the sweep as it was asked for
    cwd: StoredPath  # the working directory, in which relative paths of the overrides are meant
    directory: StoredPath  # its folder; a copy knows by it that the original's processes are not its own
    mark: str  # what all processes of its jobs carry
    started: Annotated[float, Field(allow_inf_nan=False)]  # seconds since 1970
    environment: Machine
    jobs: list[Job]  # in Hydra's order, of which the last key varies fastest
    _skipped: set[int] = set()

    @classmethod
    def planned(cls, directory: Path, overrides: Sequence[str], group: str | None = None) -> Sweep:
        """A new sweep, or the one that the folder holds of the same jobs, with ``overrides`` for what may change.

        The ``group`` is W&B's, of a new sweep; it stays as it is in one that goes on. UserError where the folder holds
        a sweep of other jobs, or runs that belong to none.
        """
        if (directory / SWEEP).exists():
            before = cls.read(directory)
            if _fixed(expand_sweep(overrides)) != _fixed([job.overrides for job in before.jobs]):
                raise UserError(
                    f"run_dir={directory}: holds a sweep of other jobs; expected another run_dir, "
                    f"or {before.command} to go on with it"
                )
            return before.changed([item for item in overrides if may_change(item)])
        if any(directory.glob(f"*/{LAUNCH}")) or (directory / LAUNCH).exists():
            raise UserError(f"run_dir={directory}: holds runs of no sweep; expected a new or empty folder")
        overrides = [*overrides, *([f"tracking.group={quoted(Path(group))}"] if group else [])]
        return cls(
            overrides=overrides,
            cwd=Path.cwd(),
            directory=directory,
            mark=secrets.token_hex(8),
            started=time.time(),
            environment=this_machine(),
            jobs=[Job(number=number, overrides=job) for number, job in enumerate(expand_sweep(overrides))],
        )

    @classmethod
    def read(cls, directory: Path) -> Sweep:
        """The sweep that a folder holds; UserError where it holds none, or its record is damaged."""
        file = directory / SWEEP
        if not file.exists():
            raise UserError(
                f"{directory}: found no {SWEEP}, expected the folder of an earlier fedgh run -m "
                "(of one run: without -m)"
            )
        sweep = super().read(directory)
        if [job.number for job in sweep.jobs] != list(range(len(sweep.jobs))):
            raise UserError(f"{file}: jobs: expected the numbers 0, 1, 2 and so on")
        for item in [*sweep.overrides, *(item for job in sweep.jobs for item in job.overrides)]:
            if key_of(item).startswith(("hydra", "-")):
                raise UserError(f"{file}: found {item!r}, expected overrides of runs alone")
        # Any text may stand there, and Path.is_dir() raises at some.
        if not os.path.isdir(sweep.cwd):  # noqa: PTH112  # as said above
            sweep.cwd = Path.cwd()
        # A copy knows the mark of the original, whose processes are not its own to end.
        if sweep.directory != directory:
            sweep.directory, sweep.mark = directory, secrets.token_hex(8)
        return sweep

    def changed(self, changes: Sequence[str]) -> Sweep:
        """This sweep, with ``changes`` to what may change; UserError where one would make its jobs others."""
        for item in changes:
            if not may_change(item):
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
                # A run that came to its end though nobody noted it; the result is the last that it writes.
                if job.status != "completed" and self.has_result(job) and not (self.folder(job) / FAILURE).exists():
                    job.status, job.reason = "completed", None
                elif job.status == "completed" and not self.has_result(job):
                    job.status = "waiting"  # somebody deleted it, to have it again
                elif job.status == "running":
                    job.status, job.reason = "interrupted", "the sweep was killed"
            self._skipped = {job.number for job in self.jobs if job.status == "completed"}
            self.save()
            yield

    def skips(self, job: Job) -> bool:
        """Whether the job was completed before."""
        return job.number in self._skipped

    def folder(self, job: Job) -> Path:
        """The job's run directory."""
        return self.directory / str(job.number)

    def has_result(self, job: Job) -> bool:
        """Whether the job's run came to its end, also where it was taken up by itself."""
        return (self.folder(job) / RESULT).exists()

    def log(self, job: Job) -> Path:
        """What the job said on stderr, attempt after attempt."""
        return self.directory / f"{job.number}.log"

    def save(self) -> None:
        """Write the record; a full disk must not end the sweep, whose run directories tell what is done."""
        try:
            self.write(self.directory)
        except OSError as error:
            print(f"fedgh: {self.directory / SWEEP}: {first_line(error)}; the sweep goes on", file=sys.stderr)

    def differing(self, job: Job) -> list[str]:
        """The overrides of a job that other jobs do not share."""
        shared = set.intersection(*(set(other.overrides) for other in self.jobs))
        return [item for item in job.overrides if item not in shared]

    @property
    def completed(self) -> bool:
        """Whether all jobs are."""
        return all(job.status == "completed" for job in self.jobs)

    @property
    def command(self) -> str:
        """The command by which it goes on."""
        return f"fedgh run -m {shlex.quote(f'resume={self.directory}')}"


def may_change(item: str) -> bool:
    """Whether an override may be another when a sweep goes on."""
    key = key_of(item)
    return any(key.startswith(name) if name.endswith(".") else key == name for name in MAY_CHANGE)


def _fixed(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of each job what may not change, in any order of its overrides."""
    return [sorted(item for item in job if not may_change(item)) for job in jobs]
