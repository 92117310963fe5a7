"""How many threads the server's own arithmetic takes beside its clients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedgh_app.config.settings import Runtime


@contextmanager
def server_threads(runtime: Runtime, clients_rest: bool) -> Iterator[None]:
    """Let torch use as many threads inside the block as the server may while its clients rest.

    Where clients never rest it has no more than one of them.
    """
    before = torch.get_num_threads()
    torch.set_num_threads((runtime.server_cpus if clients_rest else None) or runtime.client_cpus or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
