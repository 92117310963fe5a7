"""Runs without Flower's processes: the in-process runtime, and the two ends that federated results are read against.

All three go through the same round loop, strategies and client as a simulation.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedgh_app import model_card
from fedgh_app.client_app import app as client_app
from fedgh_app.config.compose import compose_config, join_overrides, quoted
from fedgh_app.data import site
from fedgh_app.errors import UserError
from fedgh_app.grids.inprocess import InProcessGrid
from fedgh_app.model_card import Facts
from fedgh_app.runs import storage
from fedgh_app.runs.history import HISTORY, Round
from fedgh_app.runs.outcome import read_result
from fedgh_app.runs.result import RESULT, Result
from fedgh_app.runs.resumption import claimed, served
from fedgh_app.runtimes.progress import Display
from fedgh_app.server.federation import Federation
from fedgh_app.server_app import deal, failing_into, federate
from fedgh_app.task import Task, task_of
from fedgh_app.vision.tally import Scores

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
    display = Display(directory, title=title, rounds=config.rounds, metric=site.headline(config), quiet=quiet)
    with claimed(directory, overrides), display:
        _federate(config, alone, directory, [{"name": "centralised", "partition-id": 0, "num-partitions": 1}], display)
    return storage.read_json(directory / "result.json")


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
    storage.save_config(directory / "config.yaml", config)
    deal(config, directory, count)
    results = {}
    for i, label in enumerate(labels):
        folder = directory / "clients" / str(i)
        folder.mkdir(parents=True)
        alone = [*_alone(config, overrides, "num_clients", "run_dir"), f"run_dir={quoted(folder)}"]
        own = compose_config(alone)
        metric = site.headline(own)
        with Display(folder, title=f"{label} alone", rounds=own.rounds, metric=metric, quiet=quiet) as display:
            _federate(own, alone, folder, [{"partition-id": i, "num-partitions": count}], display)
        last = Round.model_validate(storage.read_lines(folder / HISTORY)[-1])
        results[str(i)] = (read_result(folder / RESULT), last)
    specs = site.specs(config)
    task = task_of(next(iter(specs)))
    result = _merged(results, task)
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]  # a dict of it is a dict
    model_card.write(Facts(directory, values, result, specs, task.card(values, specs)))
    content = result.model_dump()
    storage.write_json(directory / RESULT, content)
    return content


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


def _merged(results: Mapping[str, tuple[Result, Round]], task: Task) -> Result:
    """One result of the clients' own; a part or client that could not be tested is in no mean.

    Args:
        results: by client, what it came to alone, and its last round.
        task: whose own fields the result has.
    """
    tested = {name: last.evaluate.clients for name, (_, last) in results.items() if last.evaluate.clients}
    sizes = {name: sum(own.examples for own in one.by_client.values()) for name, one in tested.items()}

    def mean(scores: Iterable[float | None]) -> float | None:
        known = {name: score for name, score in zip(tested, scores, strict=True) if score is not None}
        total = sum(sizes[name] for name in known)
        return sum(sizes[name] * score for name, score in known.items()) / total if total else None

    def means(tables: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
        return {name: mean(table.get(name) for table in tables) for name in dict.fromkeys(chain(*tables))}

    alone = [result for result, _ in results.values()]
    parts, more = means([one.parts for one in tested.values()]), means([one.more for one in tested.values()])
    score, clients = mean(one.score for one in tested.values()), {name: one.score for name, one in tested.items()}
    own = task.result(Scores(_number(score), _numbers(parts), _numbers(more)), _numbers(clients))
    merged = {
        **alone[0].model_dump(),
        **own,
        "score": score,
        "parts": parts,
        "before": {},
        "more": more,
        "evaluated": "clients",
        "seconds": {key: sum(getattr(one.seconds, key) for one in alone) for key in ("total", "rounds")},
        "rejected": [item.model_dump() for one in alone for item in one.rejected],
        "clients": {name: next(iter(one.clients.values())).model_dump() for name, (one, _) in results.items()},
        "clients_score": clients,
        "central_score": {name: one.score for name, (one, _) in results.items()},
    }
    return Result.model_validate(merged)


def _number(score: float | None) -> float:
    return math.nan if score is None else score


def _numbers(scores: Mapping[str, float | None]) -> dict[str, float]:
    return {name: _number(score) for name, score in scores.items()}


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
    with served(directory), failing_into(directory), _log_in(directory / "flower.log"):
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
