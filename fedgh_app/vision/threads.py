"""How many threads compute."""

from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import torch

from fedgh_app.vision.cores import usable_cores


def limit_threads(count: int | None) -> None:
    """Let torch and OpenCV use ``count`` threads (None: one a core); more than cores run many times slower."""
    count = count or usable_cores()
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
    cv2.setNumThreads(count)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use ``count`` threads (None: as many as it does) inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
