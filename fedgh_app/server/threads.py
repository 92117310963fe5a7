"""How many threads the server's own arithmetic takes beside its clients."""

from __future__ import annotations

from contextlib import AbstractContextManager

from fedgh_app.config.settings import Runtime
from fedgh_app.vision.threads import threads


def server_threads(runtime: Runtime, clients_rest: bool) -> AbstractContextManager[None]:
    """A block in which torch may use as many threads as the server may while its clients rest.

    Where clients never rest it has no more than one of them.
    """
    return threads((runtime.server_cpus if clients_rest else None) or runtime.client_cpus)
