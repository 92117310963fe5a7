"""``runtime=inprocess``: the ServerApp's round loop and the ClientApps in this process, without Flower's own.

Round loop, strategies and client are those of a simulation.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedgh_app.assembly.server import Assembly
from fedgh_app.client_app import app as client_app
from fedgh_app.config.compose import compose_config, join_overrides
from fedgh_app.grids.inprocess import InProcessGrid
from fedgh_app.resources import Values
from fedgh_app.runs.directory import LOG
from fedgh_app.runs.resumption import served
from fedgh_app.runtimes.progress import Display
from fedgh_app.server.federation import Federation
from fedgh_app.server.loop import federate
from fedgh_app.server_app import deal


def run_inprocess(overrides: Sequence[str], directory: Path, nodes: int, display: Display) -> Federation:
    """A federation of ``nodes`` clients in this process."""
    assembly = Assembly(compose_config(overrides))
    deal(assembly, directory, nodes)
    node_configs = [{"partition-id": i, "num-partitions": nodes} for i in range(nodes)]
    return federate_inprocess(assembly, overrides, directory, node_configs, display)


def federate_inprocess(
    assembly: Assembly, overrides: Sequence[str], directory: Path, node_configs: Sequence[Values], display: Display
) -> Federation:
    """A federation of the clients with these node configs, in this process."""
    grid = InProcessGrid(
        client_app,
        node_configs,
        {"overrides": join_overrides(overrides)},
        examples_per_second=assembly.settings.runtime.examples_per_second,
        speeds=assembly.settings.runtime.speeds,
    )
    with served(directory), _log_in(directory / LOG):
        federation = assembly.federation(directory)
        federate(federation, grid, assembly.callbacks, watch=display.update)
        return federation


def display_of(assembly: Assembly, directory: Path, title: str, *, quiet: bool = False) -> Display:
    """What shows the progress of a run."""
    metric = assembly.data.headline
    return Display(directory, title=title, rounds=assembly.settings.rounds, metric=metric, quiet=quiet)


@contextmanager
def _log_in(file: Path) -> Iterator[None]:
    """Write Flower's log to a file: between the lines of the progress display nobody could read it."""
    logger = logging.getLogger("flwr")
    before, propagates = list(logger.handlers), logger.propagate
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers[:], logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers[:], logger.propagate = before, propagates
        handler.close()
