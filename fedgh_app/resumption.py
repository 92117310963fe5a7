"""Who may write into a run directory, and with what settings a run goes on that was interrupted."""

from __future__ import annotations

import fcntl
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedgh_app import processes, storage
from fedgh_app.config import quoted
from fedgh_app.pose.errors import UserError
from fedgh_app.screening import STOP_FILE

LAUNCH_FILE = "launch.json"

# What is no part of what a run computes, or says how long it goes on.
MAY_CHANGE = (
    "rounds",
    "runtime",
    "tracking",
    "evaluate",
    "round_timeout",
    "min_clients",
    "keep_checkpoints",
    "dataset.root",
)


@contextmanager
def claimed(directory: Path, overrides: Sequence[str]) -> Iterator[str]:
    """Hold a run directory, made if need be, and note with what the run was started.

    The claim ends with this process, however it ends. Processes that a launcher left there when it was killed are
    ended first.

    Yields:
        The mark that every process of the run carries.

    Raises:
        UserError: another process holds the directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"run_dir={directory}: a run is still going on there; expected one that has ended"
            ) from None
        file = directory / LAUNCH_FILE
        if file.exists():
            processes.end_marked(str(storage.read_json(file)["mark"]))
        for name in ("failure.json", STOP_FILE):
            (directory / name).unlink(missing_ok=True)
        mark = secrets.token_hex(8)
        kept = [item for item in overrides if _key(item) not in ("run_dir", "resume")]
        storage.write_json(file, {"overrides": kept, "mark": mark})
        yield mark


def resumed(directory: Path, changes: Sequence[str]) -> list[str]:
    """The overrides of a run that goes on: those it was started with, and ``changes``.

    Raises UserError where no run was started there, or a change would make it another run.
    """
    file = directory / LAUNCH_FILE
    if not file.exists():
        raise UserError(f"resume={directory}: found no {LAUNCH_FILE}, expected the directory of an earlier fedgh run")
    changes = [item for item in changes if _key(item) != "resume"]
    for item in changes:
        if _key(item) not in MAY_CHANGE and _key(item).split(".")[0] not in MAY_CHANGE:
            raise UserError(
                f"{item}: a run that is resumed keeps its settings; expected only {', '.join(MAY_CHANGE)} to change, "
                f"or init={directory} for a new run from its model"
            )
    replaced = {_key(item) for item in changes}
    started = [str(item) for item in storage.read_json(file)["overrides"]]
    kept = [item for item in started if not {_key(item), _key(item).split(".")[0]} & replaced]
    return [*kept, *changes, f"resume={quoted(directory)}"]


def _key(override: str) -> str:
    return override.lstrip("+~").split("=", 1)[0]
