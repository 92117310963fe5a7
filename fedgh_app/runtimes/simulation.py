"""``runtime=simulation``: Flower's Ray simulation, on a private SuperLink."""

from collections.abc import Sequence
from pathlib import Path

from fedgh_app.config.settings import Runtime
from fedgh_app.runtimes.flwr_run import run_on
from fedgh_app.runtimes.progress import Display
from fedgh_app.runtimes.superlink import private_superlink
from fedgh_app.vision.threads import usable_cores


def simulate(
    runtime: Runtime, overrides: Sequence[str], directory: Path, nodes: int, display: Display, mark: str
) -> None:
    """Run on Flower's Ray simulation."""
    cpus = runtime.client_cpus or 1
    # Ray starts an actor for every client_cpus of these: more than there are clients would only take memory.
    cores = max(cpus, min(usable_cores(), nodes * cpus))
    federation = {
        "num-supernodes": nodes,
        "client-resources-num-cpus": cpus,
        "client-resources-num-gpus": runtime.client_gpus,
        "init-args-num-cpus": cores,
    }
    options = ["--federation-config", " ".join(f"{key}={value}" for key, value in federation.items())]
    with private_superlink(cpus, directory, mark) as superlink:
        run_on(superlink, overrides, directory, display, "starting Ray and the clients", *options)
