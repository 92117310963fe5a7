"""The directory of the run that this process serves."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from logging import INFO
from pathlib import Path

from flwr.common.logger import log

from fedgh_app.errors import UserError, first_line
from fedgh_app.runs.directory import STOP
from fedgh_app.runs.records import FAILURE, Failure


def run_directory(path: Path) -> Path:
    """This directory, made if need be; absolute."""
    directory = path.expanduser().resolve()
    directory.mkdir(parents=True, exist_ok=True)
    log(INFO, "Run directory: %s", directory)
    return directory


@contextmanager
def failing_into(directory: Path) -> Iterator[None]:
    """Leave ``failure.json`` with one line where the block raises, for whoever started the run."""
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
