"""How the updates of a round become the next models: one for all, one a cluster, or edge by edge up to the cloud.

Every way ends in `combine`: one strategy, on updates brought to one starting model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor

from fedgh_app.config.instantiation import instantiate
from fedgh_app.data import site
from fedgh_app.errors import RunFailed, UserError
from fedgh_app.grids.screening import ScreeningGrid
from fedgh_app.server.distillation import PublicImages
from fedgh_app.server.federation import GLOBAL, Federation, Round, Update, tensors
from fedgh_app.server.modes import CONTROL
from strategies.diagnostics import MOST_COMPARED
from strategies.finch import finch
from strategies.rebase import rebase
from strategies.updates import labels

Diagnostics = dict[str, Any]


class Flat:
    """All clients share one model, which the server aggregates (McMahan et al. 2017)."""

    def run_round(self, run: Federation, grid: ScreeningGrid, this: Round) -> None:
        """One aggregation."""
        updates = run.mode.updates(run, grid, this, this.round)
        with this.timed("aggregate"):
            base = run.cohorts.models[GLOBAL]
            arrays = combine(this, run.strategy, base, replies_of(updates, base), labels_of(updates))
            arrays = advance(run, this, base, arrays, updates)
        run.cohorts.models[GLOBAL] = distilled(run, this, arrays, updates)


class Finch:
    """Client clustering: clients whose models see the same images alike share a model (Zhuang et al., "Performance
    Optimization for Federated Person Re-identification", ACM MM 2020).

    Every client's model embeds the same shared images; FINCH (Sarfraz et al. 2019) clusters the embeddings; aggregation
    runs inside each cluster. A client that did not train in a round is placed by its latest embedding; one that never
    did joins the first cluster.

    Args:
        images: the shared images.
    """

    def __init__(self, images: PublicImages) -> None:
        self.images = images
        self.embeddings: dict[str, Tensor] = {}

    def run_round(self, run: Federation, grid: ScreeningGrid, this: Round) -> None:
        """One aggregation in each of the clusters, which are formed anew."""
        updates = run.mode.updates(run, grid, this, this.round)
        with this.timed("cluster"):
            model = site.build_model(run.config, run.spec)
            for update in updates:
                arrays = next(iter(update.reply.content.array_records.values()))
                self.embeddings[update.client] = self.images.embed(run.config, model, tensors(arrays))
            of = self._clusters(run.clients)
        models, parts = {}, []
        with this.timed("aggregate"):
            for cluster in sorted(set(of.values())):
                members = [name for name in run.clients if of[name] == cluster]
                own = [update for update in updates if of[update.client] == cluster]
                # Where the members stand now, each as much as it has examples; their updates go on from there.
                base = mean([run.cohorts[name] for name in members], [run.clients[name].examples for name in members])
                if own:
                    part = Round(round=this.round)
                    base = combine(part, run.strategy, base, replies_of(own, base), labels_of(own))
                    parts.append(part)
                models[cluster] = distilled(run, this, base, own, cluster)
        merge(this, parts)
        run.cohorts.regroup(models, of)
        this.clusters = run.cohorts.members()

    def _clusters(self, clients: Iterable[str]) -> dict[str, str]:
        known = sorted(self.embeddings)
        numbers = finch(torch.stack([self.embeddings[name] for name in known]))
        placed = dict(zip(known, numbers, strict=True))
        return {name: f"cluster-{placed.get(name, 0)}" for name in clients}

    def state_dict(self) -> dict[str, Any]:
        """The latest embedding of each client."""
        return {"embeddings": dict(self.embeddings)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the embeddings."""
        self.embeddings = dict(state["embeddings"])


class EdgeCloud:
    """Device-edge-cloud: an edge aggregates its own clients for some rounds before the cloud aggregates the edges
    (the second architecture of Zhuang et al., "Optimizing Performance of Federated Person Re-identification", 2022).

    Args:
        edge_rounds: E, aggregations at the edges in one round of the cloud.
        of: edge by client name.
    """

    def __init__(self, edge_rounds: int, of: Mapping[str, str]) -> None:
        self.edge_rounds = edge_rounds
        self.of = dict(of)
        edges = sorted(set(self.of.values()))
        self.numbers = {edge: number for number, edge in enumerate(edges, start=1)}

    def run_round(self, run: Federation, grid: ScreeningGrid, this: Round) -> None:
        """E aggregations at the edges, one in the cloud."""
        cloud = run.arrays
        examples: dict[str, dict[str, int]] = {edge: {} for edge in self.numbers}
        reports: dict[str, MetricRecord] = {}
        trained: dict[str, Any] = {}
        run.cohorts.regroup(dict.fromkeys(self.numbers, cloud), self.of)
        for e in range(self.edge_rounds):
            draw = (this.round - 1) * self.edge_rounds + e + 1
            updates = run.mode.updates(run, grid, this, draw)
            with this.timed("aggregate"):
                parts = self._edge_round(run, this, updates)
            for edge, part in parts.items():
                reports[edge] = MetricRecord({k: v for k, v in part.train.items() if k != "clients"})
                examples[edge] |= {name: run.clients[name].examples for name in part.train["clients"]}
                trained |= part.train["clients"]
        merge(this, list(parts.values()))
        this.train["clients"] = dict(sorted(trained.items()))
        at_edges, this.strategy = this.strategy, {}
        with this.timed("aggregate"):
            asked = {edge: sum(examples[edge].values()) for edge in self.numbers if examples[edge]}
            run.strategy.client_names = {number: edge for edge, number in self.numbers.items()}
            replies = [
                self._reply(edge, run.cohorts.models[edge], MetricRecord({**reports[edge], "num-examples": count}))
                for edge, count in asked.items()
            ]
            part = Round(round=this.round)
            arrays = combine(part, run.strategy, cloud, replies, list(asked))
            optimizer = run.axes.get("server_optimizer")
            arrays = optimizer.step(cloud, arrays) if optimizer is not None else arrays
        this.strategy = {**at_edges, "edges": self._members(asked), "cloud": part.strategy}
        run.cohorts.share(
            distilled(
                run, this, arrays, [Update(edge, reply, cloud) for edge, reply in zip(asked, replies, strict=True)]
            )
        )

    def _edge_round(self, run: Federation, this: Round, updates: Sequence[Update]) -> dict[str, Round]:
        """Give each edge that has updates its next model; what was noted of each."""
        parts = {}
        for edge in self.numbers:
            own = [update for update in updates if self.of[update.client] == edge]
            if own:
                base = run.cohorts.models[edge]
                part = parts[edge] = Round(round=this.round)
                arrays = combine(part, run.client_strategy, base, replies_of(own, base), labels_of(own))
                run.cohorts.models[edge] = arrays
        return parts

    def _members(self, edges: Iterable[str]) -> dict[str, list[str]]:
        return {edge: sorted(name for name, own in self.of.items() if own == edge) for edge in edges}

    def _reply(self, edge: str, arrays: ArrayRecord, metrics: MetricRecord) -> Message:
        """An edge's model as the cloud's strategy reads replies."""
        asked = Message(RecordDict(), self.numbers[edge], MessageType.TRAIN)
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=asked)


def edges_of(clients: Sequence[str], edges: int, members: Mapping[str, Sequence[Any]] | None = None) -> dict[str, str]:
    """Edge by client name: as ``members`` says, else ``edges`` of them with consecutive clients.

    Raises UserError where a client belongs to none or to two, or where an edge would be empty.
    """
    if members is None:
        if not 1 <= edges <= len(clients):
            raise UserError(
                f"topology.edges={edges}: expected 1 to {len(clients)}, as many as there are clients at most"
            )
        return {name: f"edge-{place * edges // len(clients)}" for place, name in enumerate(clients)}
    of: dict[str, str] = {}
    for edge, names in members.items():
        for name in map(str, names):
            if name not in clients:
                raise UserError(f"topology.members.{edge}={name}: no such client; expected one of {', '.join(clients)}")
            if name in of:
                raise UserError(
                    f"topology.members.{edge}={name}: it belongs to {of[name]} too; expected one edge a client"
                )
            of[name] = str(edge)
    if missing := [name for name in clients if name not in of]:
        raise UserError(f"topology.members: client {missing[0]} belongs to no edge; expected one edge for every client")
    return of


def replies_of(updates: Sequence[Update], base: ArrayRecord) -> list[Message]:
    """The replies as if all had started from ``base``, each scaled by what its staleness leaves of it."""
    return [rebase(update.reply, update.start, base, update.scale) for update in updates]


def labels_of(updates: Sequence[Update]) -> tuple[str, ...]:
    """A name for each update, as diagnostics use them."""
    return labels([update.client for update in updates])


def combine(
    this: Round, strategy: Any, base: ArrayRecord, replies: Sequence[Message], names: Sequence[str]
) -> ArrayRecord:
    """The strategy's next model; notes on the round what clients reported and what the strategy saw.

    Args:
        this: the round.
        strategy: one of `strategies`.
        base: the model that the replies are updates of.
        replies: in the order of names.
        names: of the replies.

    Raises RunFailed where the rule cannot aggregate these replies.
    """
    try:
        arrays, metrics = strategy.aggregate(this.round, base, replies)
    except ValueError as error:
        raise RunFailed(f"round {this.round}: {type(strategy).__name__}: {error}") from error
    if arrays is None:
        raise RunFailed(f"round {this.round}: {type(strategy).__name__} found no reply to aggregate")
    reported = {
        name: dict(next(iter(reply.content.metric_records.values())))
        for name, reply in zip(names, replies, strict=True)
    }
    this.train = {"clients": reported, **dict(metrics or {})}
    this.strategy |= strategy.diagnostics
    return arrays


def advance(
    run: Federation, this: Round, base: ArrayRecord, proposed: ArrayRecord, updates: Sequence[Update]
) -> ArrayRecord:
    """What the server makes of the strategy's model: SCAFFOLD's control moved, and the server optimizer's step."""
    control = run.axes.get(CONTROL)
    if control is not None:
        # What clients were to train with: no client's word moves the control of all.
        factor = instantiate(run.config.schedule, "schedule")(this.round, run.config.rounds)
        rate = float(run.config.optimizer.lr * factor)
        control.absorb(base, replies_of(updates, base), [rate] * len(updates))
    optimizer = run.axes.get("server_optimizer")
    return proposed if optimizer is None else optimizer.step(base, proposed)


def distilled(
    run: Federation, this: Round, arrays: ArrayRecord, updates: Sequence[Update], cohort: str = GLOBAL
) -> ArrayRecord:
    """The model after the clients' knowledge was distilled into it, in the rounds in which it is."""
    distillation = run.axes.get("distillation")
    if distillation is None or not updates or not distillation.due(this.round):
        return arrays
    with this.timed("distil"):
        return distillation.distil(run, this, arrays, updates, cohort)


def mean(models: Sequence[ArrayRecord], sizes: Sequence[int]) -> ArrayRecord:
    """The mean of models weighted by ``sizes``; integer buffers their maximum. The model itself where all are one."""
    first = models[0]
    if all(model is first for model in models):
        return first
    total = sum(sizes)
    result = ArrayRecord()
    for key in first:
        values = [model[key].numpy() for model in models]
        if values[0].dtype.kind == "f":
            summed = sum(size / total * value.astype("float64") for size, value in zip(sizes, values, strict=True))
            result[key] = Array(summed.astype(values[0].dtype))  # type: ignore[union-attr]  # of one model at least
        else:
            result[key] = Array(max(values, key=lambda value: value.max()))
    return result


def merge(this: Round, parts: Sequence[Round]) -> None:
    """Put what several aggregations of one round noted into one: by client as it is, the rest weighted by examples.

    Cosines stand in one matrix; pairs of different aggregations are not compared and hold None.
    """
    clients: dict[str, dict[str, Any]] = {}
    for part in parts:
        clients |= part.train.get("clients", {})
    clients = dict(sorted(clients.items()))
    examples = {name: values["num-examples"] for name, values in clients.items()}
    total = sum(examples.values())
    shared = set.intersection(*(set(values) for values in clients.values())) - {"num-examples"}
    this.train = {
        "clients": clients,
        **{key: sum(examples[name] * clients[name][key] for name in clients) / total for key in sorted(shared)},
    }
    found = [part.strategy for part in parts]
    if len(found) == 1:
        this.strategy |= found[0]
        return
    names = list(clients)
    merged: Diagnostics = {"round": this.round, "clients": names}
    for key in ("examples", "psi", "c", "update_norms"):
        values = {name: value for one in found for name, value in one.get(key, {}).items()}
        if values:
            merged[key] = {name: values[name] for name in names if name in values}
    if all("cosines" in one for one in found) and len(names) <= MOST_COMPARED:
        place = {name: number for number, name in enumerate(names)}
        matrix: list[list[float | None]] = [[None] * len(names) for _ in names]
        for one in found:
            for name, row in zip(one["clients"], one["cosines"], strict=True):
                for other, value in zip(one["clients"], row, strict=True):
                    matrix[place[name]][place[other]] = value
        merged["cosines"] = matrix
    if all("conflicting" in one for one in found):
        pairs = [len(one["clients"]) * (len(one["clients"]) - 1) / 2 for one in found]
        if sum(pairs):
            merged["conflicting"] = sum(n * one["conflicting"] for n, one in zip(pairs, found, strict=True)) / sum(
                pairs
            )
            merged["conflicting_per_tensor"] = {
                key: sum(n * one["conflicting_per_tensor"][key] for n, one in zip(pairs, found, strict=True))
                / sum(pairs)
                for key in found[0]["conflicting_per_tensor"]
            }
            compared = [
                (n, one["mean_cosine"]) for n, one in zip(pairs, found, strict=True) if one["mean_cosine"] is not None
            ]
            if compared:
                merged["mean_cosine"] = sum(n * cosine for n, cosine in compared) / sum(n for n, _ in compared)
        cosines = [one["smallest_cosine"] for one in found if one["smallest_cosine"] is not None]
        merged["smallest_cosine"] = min(cosines, default=None)
    this.strategy |= merged
