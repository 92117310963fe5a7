"""Cores and threads. Torch and OpenCV are imported where threads are set: quick commands only count the cores."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


def usable_cores() -> int:
    """The cores that this process may use: those of its affinity mask where the system has one, else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(count: int | None) -> None:
    """Let torch and OpenCV use ``count`` threads (None: one a core); more than cores run many times slower."""
    import cv2
    import torch

    count = count or usable_cores()
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
    cv2.setNumThreads(count)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use ``count`` threads (None: as many as it does) inside the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
