"""Runs without Flower's processes: the in-process runtime, and the two ends that federated results are read against.

All three go through the same round loop, strategies and client as a simulation.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from fedgh_app import partition, site, storage
from fedgh_app.client_app import app as client_app
from fedgh_app.config import compose_config, join_overrides
from fedgh_app.federation import Federation
from fedgh_app.inprocess import InProcessGrid
from fedgh_app.progress import Display
from fedgh_app.server_app import deal, failing_into, federate


def run_inprocess(
    config: DictConfig, overrides: Sequence[str], directory: Path, nodes: int, display: Display
) -> Federation:
    """A federation of ``nodes`` clients in this process."""
    deal(config, directory, nodes)
    node_configs = [{"partition-id": i, "num-partitions": nodes} for i in range(nodes)]
    return _federate(config, overrides, directory, node_configs, display)


def run_centralised(config: DictConfig, overrides: Sequence[str], directory: Path) -> dict[str, Any]:
    """One client that holds all training images: what the data could give if it might leave its sites."""
    alone = [*overrides, "partition=site", "strategy=fedavg"]
    config = compose_config(alone)
    directory.mkdir(parents=True, exist_ok=True)
    with Display(config, directory) as display:
        _federate(config, alone, directory, [{"name": "centralised"}], display)
    return storage.read_json(directory / "result.json")


def run_local(config: DictConfig, overrides: Sequence[str], directory: Path) -> dict[str, Any]:
    """Each client alone: what a site can reach without the others.

    Writes one run directory a client under ``clients/``. The headline is the mean of the clients' results on their own
    test images, weighted by their number of them.
    """
    cache = site.open_data(config)
    count = config.num_clients or partition.natural_size(config, cache) or 4
    parts = partition.partition(config, cache, count)
    deal(config, directory, count)
    results = {}
    for i, label in enumerate(parts.labels):
        folder = directory / "clients" / str(i)
        folder.mkdir(parents=True)
        alone = [*overrides, "strategy=fedavg", "num_clients=null", f"run_dir={storage.quoted(folder)}"]
        own = compose_config(alone)
        with Display(own, folder, title=f"{label} alone") as display:
            _federate(own, alone, folder, [{"partition-id": i, "num-partitions": count}], display)
        results[str(i)] = (
            storage.read_json(folder / "result.json"),
            storage.read_lines(folder / "history.jsonl")[-1],
        )
    result = _merged(results, parts)
    storage.write_json(directory / "result.json", result)
    return result


def _merged(results: Mapping[str, tuple[dict[str, Any], dict[str, Any]]], parts: partition.Partition) -> dict[str, Any]:
    own = {name: line["evaluate"]["clients"] for name, (_, line) in results.items() if line["evaluate"].get("clients")}
    share = np.array([len(parts.test[int(name)]) for name in own], dtype=float)
    share /= share.sum()
    keypoints = next(iter(own.values()))["per_keypoint"]
    first = next(iter(results.values()))[0]
    return {
        **first,
        "pck": float(share @ [found["pck"] for found in own.values()]),
        "per_keypoint": {
            name: float(share @ [found["per_keypoint"][name] for found in own.values()]) for name in keypoints
        },
        "evaluated": "clients",
        "seconds": {key: sum(result["seconds"][key] for result, _ in results.values()) for key in ("total", "rounds")},
        "rejected": [item for result, _ in results.values() for item in result["rejected"]],
        "before": {},
        "heatmap_accuracy": float(share @ [found["heatmap_accuracy"] for found in own.values()]),
        "auc": float(share @ [found["auc"] for found in own.values()]),
        "clients": {name: next(iter(result["clients"].values())) for name, (result, _) in results.items()},
        "clients_pck": {name: found["pck"] for name, found in own.items()},
        "central_pck": {name: result["pck"] for name, (result, _) in results.items()},
    }


def _federate(
    config: DictConfig,
    overrides: Sequence[str],
    directory: Path,
    node_configs: Sequence[Mapping[str, Any]],
    display: Display,
) -> Federation:
    grid = InProcessGrid(
        client_app,
        node_configs,
        {"overrides": join_overrides(overrides)},
        examples_per_second=config.runtime.get("examples_per_second", 100.0),
        speeds=config.runtime.get("speeds"),
    )
    with failing_into(directory), _log_in(directory / "flower.log"):
        return federate(config, grid, directory, watch=display.update)


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
