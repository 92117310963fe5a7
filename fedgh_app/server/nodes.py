"""The wait for the nodes of a run."""

from __future__ import annotations

import time
from pathlib import Path

from flwr.serverapp import Grid

from fedgh_app.errors import RunFailed, UserError

NODE_WAIT_SECONDS = 60.0  # where the runtime does not say


def wait_for_nodes(
    grid: Grid, expected: int | None, timeout: float | None = None, stop_file: Path | None = None
) -> list[int]:
    """Node ids, once ``expected`` nodes are connected, or (None) once their number stands still.

    Args:
        grid: whose nodes.
        expected: how many.
        timeout: seconds to wait for all of them, each of which comes when it does; None where they come together, so
            that who is not there when their number stands still does not come.
        stop_file: once this file exists, the wait ends with `RunFailed`.

    Raises UserError where another number is connected when the wait ends.
    """
    end = time.monotonic() + (timeout or NODE_WAIT_SECONDS)
    nodes: list[int] = []
    while time.monotonic() < end:
        if stop_file is not None and stop_file.exists():
            raise RunFailed("stopped")
        connected = sorted(grid.get_node_ids())
        still, nodes = bool(connected) and connected == nodes, connected
        if len(connected) == expected or (still and expected is None):
            return connected
        if still and (timeout is None or len(connected) > (expected or 0)):
            break
        time.sleep(0.5)
    if expected is None:
        raise RunFailed(f"no node connected within {timeout or NODE_WAIT_SECONDS:g} seconds")
    if timeout is None:
        hint = f'expected {expected}: flwr run . --federation-config "num-supernodes={expected}"'
    else:
        names = sorted(node.name or str(node.node_id) for node in grid.get_nodes())
        hint = (
            f"expected {expected} within runtime.node_timeout={timeout:g} seconds, found {', '.join(names) or 'none'}"
        )
    raise UserError(f"num_clients={expected}: {len(nodes)} nodes are connected; {hint}")
