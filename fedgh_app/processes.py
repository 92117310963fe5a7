"""The processes of a run, told from others by a mark in their environment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil

MARK = "FEDGH_RUN_MARK"  # environment variable that every process of a run inherits
PATIENCE_SECONDS = 7.5


def end_marked(mark: str) -> None:
    """End every process that carries ``mark``, Ray's daemons among them."""
    left = list(marked(mark))
    for survivor in left:
        with contextlib.suppress(psutil.Error):
            survivor.terminate()
    _, alive = psutil.wait_procs(left, timeout=PATIENCE_SECONDS)
    for survivor in [*alive, *marked(mark)]:
        with contextlib.suppress(psutil.Error):
            survivor.kill()


def marked(mark: str) -> Iterator[psutil.Process]:
    """Processes that carry ``mark``."""
    for candidate in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if candidate.environ().get(MARK) == mark:
                yield candidate
