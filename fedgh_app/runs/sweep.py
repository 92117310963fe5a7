"""``sweep.json``: the jobs of a sweep, and where they stand."""

from typing import Annotated, Literal

from pydantic import Field

from fedgh_app.runs.records import Record, RecordFile, Seconds

SWEEP = "sweep.json"


class Job(Record):
    """One run of a sweep."""

    number: int  # its place in the sweep, and the name of its run directory
    overrides: list[str]  # what it is started with
    status: Literal["waiting", "running", "completed", "failed", "interrupted"] = "waiting"
    reason: str | None = None  # one line on why it failed
    seconds: Seconds = 0.0  # wall time of all its attempts
    attempts: int = 0  # how often it was started


class Machine(Record):
    """On what a sweep was run."""

    python: str
    system: str
    cores: int
    packages: dict[str, str]  # versions by name
    commit: str | None  # of fedgh's checkout, with ``+`` where files differed from it; None outside of one


class SweepRecord(RecordFile):
    """A sweep as its folder keeps it."""

    NAME = SWEEP
    EXPECTED = "what fedgh run -m wrote"
    overrides: list[str]  # the sweep as it was asked for
    cwd: str  # the working directory, in which relative paths of the overrides are meant
    directory: str  # where it was started: a copy knows by it that the original's processes are not its own
    mark: str  # what all processes of its jobs carry
    started: Annotated[float, Field(allow_inf_nan=False)]  # seconds since 1970
    environment: Machine
    jobs: list[Job]  # in Hydra's order
