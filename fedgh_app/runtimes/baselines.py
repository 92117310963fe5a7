"""Runs without Flower's processes: the in-process runtime, and the two ends that federated results are read against.

All three go through the same round loop, strategies and client as a simulation.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fedgh_app import model_card
from fedgh_app.client_app import app as client_app
from fedgh_app.config.compose import compose_config, join_overrides, quoted
from fedgh_app.data import site
from fedgh_app.errors import UserError
from fedgh_app.grids.inprocess import InProcessGrid
from fedgh_app.runs import storage
from fedgh_app.runs.directory import CLIENTS, LOG
from fedgh_app.runs.history import Round, read_history
from fedgh_app.runs.result import RESULT, Durations, Result
from fedgh_app.runs.resumption import claimed, served
from fedgh_app.runtimes.progress import Display
from fedgh_app.server.client_evaluation import weighted_mean
from fedgh_app.server.federation import Federation
from fedgh_app.server.result import of_pose
from fedgh_app.server_app import deal, failing_into, federate

# What a federation of one client is: the other choices of these groups say how several work together.
ALONE = {
    "strategy": "fedavg",
    "server_optimizer": "none",
    "objective": "plain",
    "sharing": "all",
    "selection": "random",
    "mode": "sync",
    "topology": "flat",
    "clustering": "none",
    "distillation": "none",
}


def run_inprocess(
    config: DictConfig, overrides: Sequence[str], directory: Path, nodes: int, display: Display
) -> Federation:
    """A federation of ``nodes`` clients in this process."""
    deal(config, directory, nodes)
    node_configs = [{"partition-id": i, "num-partitions": nodes} for i in range(nodes)]
    return _federate(config, overrides, directory, node_configs, display)


def run_centralised(
    config: DictConfig, overrides: Sequence[str], directory: Path, *, quiet: bool = False
) -> dict[str, Any]:
    """One client that holds all training images: what the data could give if it might leave its sites.

    Raises UserError where the data sets of the federation have no model in common.
    """
    if "members" in config.dataset:
        raise UserError(
            f"dataset={config.dataset.spec}: runtime=centralised trains one model, but each data set needs its own; "
            f"expected one of {', '.join(map(str, config.dataset.members))}"
        )
    alone = [*_alone(config, overrides, "partition", "num_clients"), "partition=site"]
    config = compose_config(alone)
    site.open_data(config)
    title = f"centralised on {config.dataset.spec}"
    with claimed(directory, overrides), Display(config, directory, title=title, quiet=quiet) as display:
        _federate(config, alone, directory, [{"name": "centralised", "partition-id": 0, "num-partitions": 1}], display)
    return storage.read_json(directory / RESULT)


def run_local(config: DictConfig, overrides: Sequence[str], directory: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Each client alone: what a site can reach without the others.

    Writes one run directory a client under ``clients/``. The headline is the mean of the clients' results on their own
    test images, weighted by their number of them.

    Raises UserError where there is nothing to part, or no client would be tested.
    """
    if config.partition._target_ is None:
        raise UserError("partition=site: runtime=local needs a partition to train the clients of; expected another")
    if config.evaluate.clients_every == 0:
        raise UserError("evaluate.clients_every=0: runtime=local has no other evaluation; expected at least 1")
    count = sum(site.clients_of(config).values())
    labels = [label for dealt in site.deal(config, count).values() for label in dealt.parts.labels]
    directory.mkdir(parents=True, exist_ok=True)
    storage.save_config(directory, config)
    deal(config, directory, count)
    results = {}
    for i, label in enumerate(labels):
        folder = directory / CLIENTS / str(i)
        folder.mkdir(parents=True)
        alone = [*_alone(config, overrides, "num_clients", "run_dir"), f"run_dir={quoted(folder)}"]
        own = compose_config(alone)
        with Display(own, folder, title=f"{label} alone", quiet=quiet) as display:
            _federate(own, alone, folder, [{"partition-id": i, "num-partitions": count}], display)
        results[str(i)] = (Result.read(folder), read_history(folder)[-1])
    merged = _merged(results)
    result: dict[str, Any] = storage.plain(merged)
    model_card.write(directory, config, result)
    merged.write(directory)
    return result


def without(overrides: Sequence[str], *groups: str) -> list[str]:
    """The overrides that touch none of ``groups``: not the choice, not a value below, not a choice put there."""

    def touched(item: str) -> set[str]:
        key = item.lstrip("+~").split("=", 1)[0]
        return {part.split(".")[0] for part in key.split("@")}

    return [item for item in overrides if not touched(item) & set(groups)]


def _alone(config: DictConfig, overrides: Sequence[str], *dropped: str) -> list[str]:
    """``overrides`` for a federation of one client, without ``dropped`` keys."""
    choices = dict(ALONE)
    if "members" in config.dataset:  # no model fits them all, so that sharing all of it is refused
        del choices["sharing"]
    kept = without(overrides, *choices, *dropped)
    return [*kept, *(f"{group}={choice}" for group, choice in choices.items())]


def _merged(results: Mapping[str, tuple[Result, Round]]) -> Result:
    """One result of the clients' own; a keypoint or client that could not be tested is in no mean."""
    tested = {name: last.evaluate.clients for name, (_, last) in results.items() if last.evaluate.clients}
    # A federation of one client: all its test images are that client's.
    headline = weighted_mean(tested)
    clients = {name: measured.score for name, measured in tested.items()}
    own = {**of_pose(headline, clients), "central_pck": {name: result.score for name, (result, _) in results.items()}}
    first = next(iter(results.values()))[0]
    durations = [result.seconds for result, _ in results.values()]
    return Result(
        metric=first.metric,
        score=headline.score,
        parts=headline.parts,
        more=headline.more,
        evaluated="clients",
        rounds=first.rounds,
        seconds=Durations(total=sum(each.total for each in durations), rounds=sum(each.rounds for each in durations)),
        rejected=[item for result, _ in results.values() for item in result.rejected],
        clients={name: next(iter(result.clients.values())) for name, (result, _) in results.items()},
        clients_score=clients,
        dataset=first.dataset,
        **own,
    )


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
    with served(directory), failing_into(directory), _log_in(directory / LOG):
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
