"""Who may write into a run directory, and with what settings a run goes on that was interrupted."""

import contextlib
import fcntl
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import OmegaConf

from fedgh_app.config.compose import quoted
from fedgh_app.errors import UserError, first_line
from fedgh_app.resources import Values
from fedgh_app.runs import processes
from fedgh_app.runs.directory import CONFIG, STOP
from fedgh_app.runs.records import FAILURE, LAUNCH, PRIVACY, Failure, Launch
from fedgh_app.runs.storage import flat

LAUNCHER_LOCK, SERVER_LOCK = ".lock", ".server.lock"

# What is no part of what a run computes, or says how long it goes on.
MAY_CHANGE = (
    "rounds",
    "runtime",
    "tracking",
    "evaluate",
    "round_timeout",
    "min_clients",
    "keep_checkpoints",
    "callbacks",
    "dataset.root",
)
SAME_CLIENTS = (("simulation", "inprocess"), ("deployment",))


@contextmanager
def claimed(directory: Path, overrides: Sequence[str]) -> Iterator[str]:
    """Hold a run directory, made if need be, until this process ends; yield the mark that the run's processes carry.

    Processes that a launcher left there when it was killed are ended first. UserError where another process holds the
    directory, or a server writes there whose launcher is not known.
    """
    with locked(directory, "run"):
        end_processes(directory)
        with served(directory):
            pass  # a server that nobody here started, such as plain `flwr run`'s, is not disturbed
        (directory / STOP).unlink(missing_ok=True)
        mark = secrets.token_hex(8)
        kept = [item for item in overrides if key_of(item) not in ("run_dir", "resume")]
        Launch(overrides=kept, mark=mark, directory=str(directory)).write(directory)
        yield mark


@contextmanager
def locked(directory: Path, what: str, name: str = LAUNCHER_LOCK) -> Iterator[None]:
    """Hold a directory, made if need be, until the block or this process ends; UserError where another holds it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / name).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"run_dir={directory}: a {what} is still going on there; expected one that has ended"
            ) from None
        yield


def end_processes(directory: Path) -> None:
    """End what a launcher left of a run when it was killed itself."""
    # A copy of a run directory knows the mark of the original, whose processes are not its own to end.
    if (directory / LAUNCH).exists() and (before := Launch.read(directory)).directory == str(directory):
        processes.end_marked(before.mark)


def clear(directory: Path) -> None:
    """Empty the directory of a run that has ended, but for what it spent of its clients' privacy."""
    with claimed(directory, ()):
        for entry in directory.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name not in (LAUNCHER_LOCK, SERVER_LOCK, PRIVACY):
                entry.unlink()


@contextmanager
def served(directory: Path) -> Iterator[None]:
    """Be the only server that writes into a run directory, whoever started it; UserError where there is one.

    Where the block raises, ``failure.json`` says why in one line, for whoever started the run.
    """
    with locked(directory, "run", SERVER_LOCK):
        (directory / FAILURE).unlink(missing_ok=True)
        try:
            yield
        except BaseException as error:
            line = "stopped" if isinstance(error, KeyboardInterrupt) else first_line(error)
            # A disk that is full takes not even this; whoever started the run then has the engine's word.
            with contextlib.suppress(OSError):
                Failure(error=line, kind=type(error).__name__, user=isinstance(error, UserError)).write(directory)
            (directory / STOP).unlink(missing_ok=True)  # it has been heeded; a run that is resumed is to go on
            raise


def resumed(directory: Path, changes: Sequence[str]) -> list[str]:
    """The overrides of a run that goes on; UserError where there is none, or ``changes`` would make it another run."""
    if not (directory / LAUNCH).exists():
        raise UserError(f"resume={directory}: found no {LAUNCH}, expected the directory of an earlier fedgh run")
    started = Launch.read(directory).overrides
    for item in started:  # Hydra builds what its own keys say, from whoever wrote the file
        if key_of(item).startswith(("hydra", "-")):
            raise UserError(f"{directory / LAUNCH}: found {item!r}, expected overrides of the run alone")
    changes = [item for item in changes if key_of(item) != "resume"]
    for item in changes:
        if key_of(item) not in MAY_CHANGE and key_of(item).split(".")[0] not in MAY_CHANGE:
            raise UserError(
                f"{item}: a run that is resumed keeps its settings; expected only {', '.join(MAY_CHANGE)} to change, "
                f"or init={directory} for a new run from its model"
            )
        if key_of(item) == "runtime" and item.split("=", 1)[1] not in (same := _same_clients(started)):
            raise UserError(f"{item}: it has other clients than the run; expected {' or '.join(same)}")
    replaced = {key_of(item) for item in changes}
    kept = [item for item in started if not {key_of(item), key_of(item).split(".")[0]} & replaced]
    return [*kept, *changes, f"resume={quoted(directory)}"]


def _same_clients(overrides: Sequence[str]) -> tuple[str, ...]:
    """The runtimes that have the clients of the run that was started with ``overrides``."""
    runtime = next((item.split("=", 1)[1] for item in reversed(overrides) if key_of(item) == "runtime"), "simulation")
    return next((same for same in SAME_CLIENTS if runtime in same), (runtime,))


def check_same(values: Values, directory: Path) -> None:
    """Refuse (UserError) a config that differs from the run's own in what may not change."""
    now = flat(values)
    for key, value in flat(OmegaConf.to_container(OmegaConf.load(directory / CONFIG))).items():
        may = {key, key.split(".")[0]} & {*MAY_CHANGE, "run_dir", "resume", "num_clients"}
        if not may and now.get(key) != value:
            raise UserError(f"{key}={now.get(key)}: the run in {directory} has {value}; expected the same to resume it")


def key_of(override: str) -> str:
    """The key that an override sets."""
    return override.lstrip("+~").split("=", 1)[0]
