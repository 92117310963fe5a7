"""The two ends that federated results are read against: all data in one place, and each client alone.

Both are federations of one client in this process, with the round loop, strategy and client of a simulation.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedgh_app import model_card
from fedgh_app.assembly.server import Assembly
from fedgh_app.config.compose import compose_config, quoted
from fedgh_app.data.federated import FederatedData
from fedgh_app.errors import UserError
from fedgh_app.model_card.facts import Facts
from fedgh_app.runs import storage
from fedgh_app.runs.directory import CLIENTS
from fedgh_app.runs.history import Round, read_history
from fedgh_app.runs.result import Durations, Result
from fedgh_app.runs.resumption import claimed, key_of
from fedgh_app.runtimes.inprocess import display_of, federate_inprocess
from fedgh_app.server.evaluation import weighted_mean
from fedgh_app.server_app import deal
from fedgh_app.task import Task

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


def run_centralised(assembly: Assembly, overrides: Sequence[str], directory: Path, *, quiet: bool = False) -> Result:
    """One client that holds all training images: what the data could give if it might leave its sites.

    Raises UserError where the data sets of the federation have no model in common.
    """
    data = assembly.data
    if data.several:
        raise UserError(
            f"dataset={data.name}: runtime=centralised trains one model, but each data set needs its own; "
            f"expected one of {', '.join(data.sets)}"
        )
    alone = [*_alone(data, overrides, "partition", "num_clients"), "partition=site"]
    together = Assembly(compose_config(alone))
    _ = together.data.only.examples
    title = f"centralised on {data.name}"
    with claimed(directory, overrides), display_of(together, directory, title, quiet=quiet) as display:
        node = {"name": "centralised", "partition-id": 0, "num-partitions": 1}
        federate_inprocess(together, alone, directory, [node], display)
    return Result.read(directory)


def run_local(assembly: Assembly, overrides: Sequence[str], directory: Path, *, quiet: bool = False) -> Result:
    """Each client alone: what a site can reach without the others.

    Writes one run directory a client under ``clients/``. The headline is the mean of the clients' results on their own
    test images, weighted by their number of them.

    Raises UserError where there is nothing to part, or no client would be tested.
    """
    data, settings = assembly.data, assembly.settings
    if data.held_by_sites:
        raise UserError("partition=site: runtime=local needs a partition to train the clients of; expected another")
    if settings.evaluate.clients_every == 0:
        raise UserError("evaluate.clients_every=0: runtime=local has no other evaluation; expected at least 1")
    count = sum(data.clients_of().values())
    labels = [label for dealt in data.deal(count).values() for label in dealt.parts.labels]
    directory.mkdir(parents=True, exist_ok=True)
    storage.save_config(directory, assembly.values)
    deal(assembly, directory, count)
    results = {}
    for i, label in enumerate(labels):
        folder = directory / CLIENTS / str(i)
        folder.mkdir(parents=True)
        alone = [*_alone(data, overrides, "num_clients", "run_dir"), f"run_dir={quoted(folder)}"]
        with display_of(assembly, folder, f"{label} alone", quiet=quiet) as display:
            node = {"partition-id": i, "num-partitions": count}
            federate_inprocess(Assembly(compose_config(alone)), alone, folder, [node], display)
        results[str(i)] = (Result.read(folder), read_history(folder)[-1])
    result = _merged(assembly.task, results)
    specs = {name: one.spec for name, one in data.sets.items()}
    model_card.write(Facts(directory, assembly.values, result, specs, assembly.task.card(assembly.values, specs)))
    result.write(directory)
    return result


def without(overrides: Sequence[str], *groups: str) -> list[str]:
    """The overrides that touch none of ``groups``: not the choice, not a value below, not a choice put there."""
    return [item for item in overrides if {part.split(".")[0] for part in key_of(item).split("@")}.isdisjoint(groups)]


def _alone(data: FederatedData, overrides: Sequence[str], *dropped: str) -> list[str]:
    """``overrides`` for a federation of one client, without ``dropped`` keys."""
    choices = dict(ALONE)
    if data.several:  # no model fits them all, so that sharing all of it is refused
        del choices["sharing"]
    kept = without(overrides, *choices, *dropped)
    return [*kept, *(f"{group}={choice}" for group, choice in choices.items())]


def _merged(task: Task, results: Mapping[str, tuple[Result, Round]]) -> Result:
    """One result of the clients' own; a part or client that could not be tested is in no mean."""
    tested = {name: last.evaluate.clients for name, (_, last) in results.items() if last.evaluate.clients}
    # A federation of one client: all its test images are that client's.
    headline = weighted_mean(list(tested.values()))
    clients = {name: measured.score for name, measured in tested.items()}
    own = {**task.result(headline, clients), "central_score": {n: result.score for n, (result, _) in results.items()}}
    first = next(iter(results.values()))[0]
    durations = [result.seconds for result, _ in results.values()]
    return Result(
        metric=first.metric,
        part=first.part,
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
