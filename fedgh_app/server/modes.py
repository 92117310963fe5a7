"""When the server goes on: after all whom it asked have answered (sync), or after the first that answer (async)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from flwr.app import ArrayRecord

from fedgh_app.errors import UserError
from fedgh_app.server.exchange import Exchange
from fedgh_app.server.federation import Stateful, Update
from strategies.fedavg import State
from strategies.updates import labels

LOOK_SECONDS = 10.0  # after which an asynchronous server, waiting, looks who has come back


class Mode(Stateful):
    """When the server goes on."""

    clients_rest: ClassVar[bool] = True  # whether nobody trains between two rounds

    def idle(self, clients: Iterable[str]) -> list[str]:
        """Those of all clients that do not train just now."""
        return list(clients)

    def updates(self, exchange: Exchange, draw: int) -> list[Update]:
        """The next updates to aggregate, in the order of names.

        Args:
            exchange: in the round that they are for.
            draw: number of this aggregation of clients' updates, counted from 1.
        """
        raise NotImplementedError


class Sync(Mode):
    """Waits for every client that it asked (McMahan et al. 2017)."""

    def updates(self, exchange: Exchange, draw: int) -> list[Update]:
        """Ask the selected clients, wait for their replies.

        Raises RunFailed where fewer than ``min_clients`` answer well.
        """
        federation = exchange.federation
        least = federation.settings.min_clients
        present = exchange.await_present(self.idle(federation.clients), least)
        names = exchange.select(present, federation.selection.size(len(federation.clients)), draw)
        answers = exchange.train(names, dict.fromkeys(names, draw))
        exchange.note()
        exchange.require(len(answers), least)
        for answer in answers:
            exchange.acknowledge(answer, draw, draw)
        updates = [Update(answer.client, answer.reply, federation.cohorts[answer.client]) for answer in answers]
        return sorted(updates, key=lambda update: update.client)


@dataclass(eq=False)
class Async(Mode):
    """Buffered asynchronous aggregation, FedBuff (Nguyen et al., "Federated Learning with Buffered Asynchronous
    Aggregation", AISTATS 2022).

    Clients train without waiting for each other; the server aggregates each time ``buffer`` updates have arrived. An
    update that started s aggregations ago is scaled by (1 + s)^(-a); the result is not renormalised.
    """

    clients_rest: ClassVar[bool] = False

    buffer: int = 2  # B, updates in one aggregation
    staleness_exponent: float = 0.5  # a, at least 0; 0 forgives every delay
    max_staleness: int = 20  # staler updates than this are dropped and counted
    # Clients that train at a time, and so the most versions of the model that are kept; None: as many as ``selection``
    # wants of all. With fewer than all, the selection says who is next.
    concurrency: int | None = None
    # By message id: who trains, on which model, since which round, and which training of that client it is.
    in_flight: dict[str, tuple[str, ArrayRecord, int, int]] = field(default_factory=dict, init=False)
    draws: dict[str, int] = field(default_factory=dict, init=False)
    selections: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for name, value, least in (("buffer", self.buffer, 1), ("max_staleness", self.max_staleness, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"mode.{name}={value}: expected a whole number of at least {least}")
        if self.concurrency is not None and (not isinstance(self.concurrency, int) or self.concurrency < 1):
            raise UserError(f"mode.concurrency={self.concurrency}: expected a whole number of at least 1, or null")
        if not self.staleness_exponent >= 0:
            raise UserError(f"mode.staleness_exponent={self.staleness_exponent}: expected a number of at least 0")

    def idle(self, clients: Iterable[str]) -> list[str]:
        """Those that do not train just now."""
        busy = {name for name, *_ in self.in_flight.values()}
        return [name for name in clients if name not in busy]

    def updates(self, exchange: Exchange, draw: int) -> list[Update]:
        """Keep clients busy until ``buffer`` updates are here.

        With nobody left to wait for, those that came are enough if they are ``min_clients``; RunFailed otherwise.
        """
        current, least = exchange.round, exchange.federation.settings.min_clients
        exchange.await_present(self.idle(exchange.federation.clients), 0 if self.in_flight else least)
        arrived: list[Update] = []
        dropped = 0
        while len(arrived) < self.buffer:
            self._keep_busy(exchange)
            if not self.in_flight:
                break
            for answer in exchange.arrivals(self.in_flight, LOOK_SECONDS):
                name, start, since, number = self.in_flight.pop(answer.number)
                exchange.acknowledge(answer, number, self.selections)
                staleness = current.round - since
                if staleness > self.max_staleness:
                    dropped += 1
                else:
                    scale = (1 + staleness) ** -self.staleness_exponent
                    arrived.append(Update(name, answer.reply, start, staleness, scale))
            for lost in [number for number in self.in_flight if not exchange.waits_for(number)]:
                del self.in_flight[lost]
        exchange.note()
        exchange.require(len(arrived), min(self.buffer, least))
        versions = {id(start): start for _, start, *_ in self.in_flight.values()}
        current.bytes["versions"] = sum(len(array.data) for start in versions.values() for array in start.values())
        arrived.sort(key=lambda update: update.client)
        names = labels([update.client for update in arrived])
        current.strategy["staleness"] = {name: one.staleness for name, one in zip(names, arrived, strict=True)}
        current.strategy["dropped"] = dropped
        return arrived

    def _keep_busy(self, exchange: Exchange) -> None:
        """Have clients train that do not, as many as may at a time."""
        federation = exchange.federation
        # Who failed is not asked again before the next aggregation: it might fail at once, without end.
        failed = {item.client for item in exchange.rejected()}
        idle = [name for name in exchange.present(self.idle(federation.clients)) if name not in failed]
        together = self.concurrency or federation.selection.size(len(federation.clients))
        free = together - len(self.in_flight)
        if not idle or free < 1:
            return
        self.selections += 1
        names = exchange.select(idle, min(free, len(idle)), self.selections)
        draws = {name: self.draws.get(name, 0) + 1 for name in names}
        self.draws |= draws
        for number, name in exchange.start_training(names, draws).items():
            self.in_flight[number] = (name, federation.cohorts[name], exchange.round.round, draws[name])

    def state_dict(self) -> State:
        """How often each client was asked, and how often clients were selected; who trains when a run ends is asked
        anew."""
        return {"draws": dict(self.draws), "selections": self.selections}

    def load_state_dict(self, state: State) -> None:
        """Take up the counts."""
        self.draws, self.selections = dict(state["draws"]), int(state["selections"])
