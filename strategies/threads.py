"""How many threads the arithmetic of an aggregation uses: one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch, in the calling thread, to one thread.

    A cache-sized block or a stack of small Gramians is too little work to share: threads would spend their
    time waiting for each other, and where other processes want the cores too, most of it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
