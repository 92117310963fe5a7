"""The ServerApp: Flower's door to the round loop."""

from collections import Counter
from collections.abc import Mapping
from logging import INFO
from pathlib import Path

from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from fedgh_app.assembly.server import Assembly
from fedgh_app.config.compose import compose_config, run_name, split_overrides
from fedgh_app.data.federated import Dealt
from fedgh_app.grids.packing import PackingGrid
from fedgh_app.plots.holdings import holdings
from fedgh_app.runs import processes
from fedgh_app.runs.directory import PLOTS, STOP
from fedgh_app.runs.resumption import served
from fedgh_app.server.loop import federate
from fedgh_app.server.registration import wait_for_nodes

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation on Flower's engine."""
    config = compose_config(split_overrides(str(context.run_config.get("overrides", ""))))
    directory = Path(config.run_dir or Path("runs") / run_name(config)).expanduser().resolve()
    log(INFO, "Run directory: %s", directory)
    with served(directory):
        assembly = Assembly(config)
        federation, runtime = assembly.federation(directory), assembly.settings.runtime
        if runtime.packed:
            grid = PackingGrid(grid)
        try:
            # The simulation engine registers its nodes after it has started this thread.
            expected = assembly.settings.num_clients
            nodes = wait_for_nodes(grid, expected, runtime.node_timeout, directory / STOP)
            deal(assembly, directory, len(nodes))
            federate(federation, grid, assembly.callbacks)
        finally:
            if runtime.name == "simulation":
                processes.end_ray_calls()


def deal(assembly: Assembly, directory: Path, num_clients: int) -> None:
    """Make the partition that the clients will read, and draw it; nothing where sites hold their own data."""
    if assembly.data.held_by_sites:
        return
    dealt = assembly.data.deal(num_clients)
    (directory / PLOTS).mkdir(parents=True, exist_ok=True)
    draw_holdings(dealt, directory / PLOTS / "partition.png", assembly.data.name)


def draw_holdings(dealt: Mapping[str, Dealt], file: Path, title: str) -> None:
    """Draw who holds what: by the attribute of a data set, where it has one, else by data set."""
    held = [
        one.data.holdings(part) or Counter({name: len(part)}) for name, one in dealt.items() for part in one.parts.train
    ]
    labels = [label for one in dealt.values() for label in one.parts.labels]
    attributes = [one.data.attribute for one in dealt.values()]
    holdings(held, labels, attributes[0] if len(attributes) == 1 else None, file, title)
