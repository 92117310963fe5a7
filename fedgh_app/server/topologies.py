"""How the updates of a round become the next models: one for all, one a cluster, or edge by edge up to the cloud."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor

from fedgh_app.errors import UserError
from fedgh_app.runs.history import Round
from fedgh_app.server.aggregation import combine, completed, mean, merge
from fedgh_app.server.exchange import Exchange
from fedgh_app.server.federation import GLOBAL, Federation, Stateful, Update, tensors
from fedgh_app.server.public_images import PublicImages
from strategies.fedavg import State
from strategies.finch import finch


class Topology(Stateful):
    """How the updates of a round become the next models."""

    one_model: ClassVar[bool] = True  # whether all clients share one between two rounds

    def join(self, federation: Federation) -> None:
        """Called once the clients are known, before the first round."""

    def run_round(self, exchange: Exchange) -> None:
        """Let clients train and give every cohort its next model."""
        raise NotImplementedError


class Flat(Topology):
    """All clients share one model, which the server aggregates (McMahan et al. 2017)."""

    def run_round(self, exchange: Exchange) -> None:
        """One aggregation."""
        federation, current = exchange.federation, exchange.round
        updates = federation.mode.updates(exchange, current.round)
        base = federation.cohorts.models[GLOBAL]
        with current.timed("aggregate"):
            arrays = combine(current, federation.strategy, base, updates)
        federation.cohorts.models[GLOBAL] = completed(federation, current, base, arrays, updates)


@dataclass(eq=False)
class Finch(Topology):
    """Client clustering: clients whose models see the same images alike share a model (Zhuang et al., "Performance
    Optimization for Federated Person Re-identification", ACM MM 2020).

    Every client's model embeds the same shared images; FINCH (Sarfraz et al. 2019) clusters the embeddings; aggregation
    runs inside each cluster. A client that did not train in a round is placed by its latest embedding; one that never
    did joins the first cluster.
    """

    one_model: ClassVar[bool] = False

    images: PublicImages  # the shared ones
    embeddings: dict[str, Tensor] = field(default_factory=dict, init=False)

    def join(self, federation: Federation) -> None:
        """Open the images."""
        self.images.open()

    def run_round(self, exchange: Exchange) -> None:
        """One aggregation in each of the clusters, which are formed anew."""
        federation, current = exchange.federation, exchange.round
        updates = federation.mode.updates(exchange, current.round)
        with current.timed("cluster"):
            self.embeddings |= self.images.embeddings({one.client: tensors(one.arrays) for one in updates})
            of = self._clusters(federation.clients)
        models, parts = {}, []
        for cluster in sorted(set(of.values())):
            members = [name for name in federation.clients if of[name] == cluster]
            inside = [update for update in updates if of[update.client] == cluster]
            with current.timed("aggregate"):
                # Where the members stand now, each as much as it has examples; their updates go on from there.
                sizes = [federation.clients[name].examples for name in members]
                models[cluster] = base = mean([federation.cohorts[name] for name in members], sizes)
                if not inside:
                    continue
                part = Round(round=current.round)
                arrays = combine(part, federation.strategy, base, inside)
                parts.append(part)
            models[cluster] = completed(federation, current, base, arrays, inside, cluster)
        merge(current, parts)
        federation.cohorts.regroup(models, of)
        current.clusters = federation.cohorts.members()

    def _clusters(self, clients: Iterable[str]) -> dict[str, str]:
        known = sorted(self.embeddings)
        numbers = finch(torch.stack([self.embeddings[name] for name in known]))
        placed = dict(zip(known, numbers, strict=True))
        return {name: f"cluster-{placed.get(name, 0)}" for name in clients}

    def state_dict(self) -> State:
        """The latest embedding of each client."""
        return {"embeddings": dict(self.embeddings)}

    def load_state_dict(self, state: State) -> None:
        """Take up the embeddings."""
        self.embeddings = dict(state["embeddings"])


@dataclass(eq=False)
class EdgeCloud(Topology):
    """Device-edge-cloud: an edge aggregates its own clients for some rounds before the cloud aggregates the edges
    (the second architecture of Zhuang et al., "Optimizing Performance of Federated Person Re-identification", 2022).
    """

    edge_rounds: int  # E, aggregations at the edges in one round of the cloud
    edges: int = 2  # how many, each with consecutive clients
    members: Mapping[str, Sequence[object]] | None = None  # or names of clients by edge

    def join(self, federation: Federation) -> None:
        """Deal the clients out to the edges; UserError where that is not possible."""
        self.of = edges_of(list(federation.clients), self.edges, self.members)
        self.numbers = {edge: number for number, edge in enumerate(sorted(set(self.of.values())), start=1)}

    def run_round(self, exchange: Exchange) -> None:
        """E aggregations at the edges, one in the cloud."""
        federation, current = exchange.federation, exchange.round
        cloud = federation.arrays
        examples: dict[str, dict[str, int]] = {edge: {} for edge in self.numbers}
        reports: dict[str, MetricRecord] = {}
        trained: dict[str, object] = {}
        federation.cohorts.regroup(dict.fromkeys(self.numbers, cloud), self.of)
        for e in range(self.edge_rounds):
            draw = (current.round - 1) * self.edge_rounds + e + 1
            updates = federation.mode.updates(exchange, draw)
            with current.timed("aggregate"):
                parts = self._edge_round(federation, current, updates)
            for edge, part in parts.items():
                reports[edge] = MetricRecord({k: v for k, v in part.train.items() if k != "clients"})
                examples[edge] |= {name: federation.clients[name].examples for name in part.train["clients"]}
                trained |= part.train["clients"]
        merge(current, list(parts.values()))
        current.train["clients"] = dict(sorted(trained.items()))
        at_edges, current.strategy = current.strategy, {}
        with current.timed("aggregate"):
            asked = {edge: sum(examples[edge].values()) for edge in self.numbers if examples[edge]}
            federation.strategy.client_names = {number: edge for edge, number in self.numbers.items()}
            updates, part = [], Round(round=current.round)
            for edge, count in asked.items():
                metrics = MetricRecord({**reports[edge], "num-examples": count})
                updates.append(Update(edge, self._reply(edge, federation.cohorts.models[edge], metrics), cloud))
            arrays = combine(part, federation.strategy, cloud, updates)
        members = {edge: sorted(name for name, other in self.of.items() if other == edge) for edge in asked}
        current.strategy = {**at_edges, "edges": members, "cloud": part.strategy}
        arrays = completed(federation, current, cloud, arrays, updates)
        federation.cohorts.models = dict.fromkeys(self.numbers, arrays)

    def _edge_round(self, federation: Federation, current: Round, updates: Sequence[Update]) -> dict[str, Round]:
        """Give each edge that has updates its next model; what was noted of each."""
        parts = {}
        for edge in self.numbers:
            inside = [update for update in updates if self.of[update.client] == edge]
            if inside:
                base, part = federation.cohorts.models[edge], Round(round=current.round)
                federation.cohorts.models[edge] = combine(part, federation.client_strategy, base, inside)
                parts[edge] = part
        return parts

    def _reply(self, edge: str, arrays: ArrayRecord, metrics: MetricRecord) -> Message:
        """An edge's model as the cloud's strategy reads replies."""
        asked = Message(RecordDict(), self.numbers[edge], MessageType.TRAIN)
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=asked)


def edges_of(clients: Sequence[str], edges: int, members: Mapping[str, Sequence[object]] | None) -> dict[str, str]:
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
