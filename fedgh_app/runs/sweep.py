"""``sweep.json``: the jobs of a sweep, and where they stand."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedgh_app.runs.records import Record, RecordFile, Seconds

SWEEP = "sweep.json"


class Job(Record):
    """One run of a sweep.

    Attributes:
        number: its place in the sweep, and the name of its run directory.
        overrides: what it is started with.
        reason: one line on why it failed.
        seconds: wall time of all its attempts.
        attempts: how often it was started.
    """

    number: int
    overrides: list[str]
    status: Literal["waiting", "running", "completed", "failed", "interrupted"] = "waiting"
    reason: str | None = None
    seconds: Seconds = 0.0
    attempts: int = 0


class Machine(Record):
    """On what a sweep was run.

    Attributes:
        packages: versions by name.
        commit: of the checkout that fedgh ran from, with ``+`` where files differed from it; None outside of one.
    """

    python: str
    system: str
    cores: int
    packages: dict[str, str]
    commit: str | None


class SweepRecord(RecordFile):
    """A sweep as its folder keeps it.

    Attributes:
        overrides: the sweep as it was asked for.
        cwd: the working directory, in which relative paths of the overrides are meant.
        directory: where it was started: a copy knows by it that the original's processes are not its own.
        mark: what all processes of its jobs carry.
        started: seconds since 1970.
        jobs: in Hydra's order.
    """

    NAME = SWEEP
    EXPECTED = "what fedgh run -m wrote"
    overrides: list[str]
    cwd: str
    directory: str
    mark: str
    started: Annotated[float, Field(allow_inf_nan=False)]
    environment: Machine
    jobs: list[Job]
