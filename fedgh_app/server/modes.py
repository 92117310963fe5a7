"""When the server goes on: after all whom it asked have answered (sync), or after the first few (async)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from logging import WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.logger import log

from fedgh_app.errors import RunFailed, UserError
from fedgh_app.grids.screening import POLL_SECONDS, ScreeningGrid, Traffic
from fedgh_app.runs.history import Rejected, Round
from fedgh_app.server.federation import Federation, Update
from fedgh_app.server.selection import Candidate
from strategies.updates import labels

CONTROL = "control"
PRIVACY = "privacy"
OUTLIERS = "outliers"
MOST_TOLD = 10  # clients that one line names
LOOK_SECONDS = 10.0  # after which an asynchronous server, waiting, looks who has come back


class Sync:
    """Waits for every client that it asked (McMahan et al. 2017)."""

    def idle(self, run: Federation) -> list[str]:
        """All clients: between rounds nobody trains."""
        return list(run.clients)

    def updates(self, run: Federation, grid: ScreeningGrid, this: Round, draw: int) -> list[Update]:
        """Ask the selected clients, wait for their replies.

        Raises RunFailed where fewer than ``min_clients`` answer well.
        """
        free = askable(run, grid, this, self.idle(run), run.config.min_clients)
        names = select(run, grid, this, free, run.axes["selection"].size(len(run.clients)), draw)
        with this.timed("train"):
            messages = training_messages(run, grid, this, names, dict.fromkeys(names, draw))
            grid.traffic = Traffic()
            answers = grid.answers(messages, timeout=run.config.round_timeout)
            answers = without_outliers(run, grid, answers)
        book(grid, this)
        if len(answers) < run.config.min_clients:
            raise too_few(this, len(answers), run.config.min_clients)
        updates = []
        for asked, reply in answers:
            name = grid.name_of(asked)
            accept(run, name, reply, draw, draw)
            updates.append(Update(name, reply, run.cohorts[name]))
        return sorted(updates, key=lambda update: update.client)


class Async:
    """Buffered asynchronous aggregation, FedBuff (Nguyen et al., "Federated Learning with Buffered Asynchronous
    Aggregation", AISTATS 2022).

    Clients train without waiting for each other; the server aggregates each time ``buffer`` updates have arrived. An
    update that started s aggregations ago is scaled by (1 + s)^(-a); the result is not renormalised.

    Args:
        buffer: B, updates in one aggregation.
        staleness_exponent: a, at least 0; 0 forgives every delay.
        max_staleness: staler updates than this are dropped and counted.
        concurrency: clients that train at a time, and so the most versions of the model that are kept; None: as many as
            ``selection`` wants of all. With fewer than all, the selection says who is next.
    """

    def __init__(
        self,
        buffer: int = 2,
        staleness_exponent: float = 0.5,
        max_staleness: int = 20,
        concurrency: int | None = None,
    ) -> None:
        for name, value, least in (("buffer", buffer, 1), ("max_staleness", max_staleness, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"mode.{name}={value}: expected a whole number of at least {least}")
        if concurrency is not None and (not isinstance(concurrency, int) or concurrency < 1):
            raise UserError(f"mode.concurrency={concurrency}: expected a whole number of at least 1, or null")
        if not staleness_exponent >= 0:
            raise UserError(f"mode.staleness_exponent={staleness_exponent}: expected a number of at least 0")
        self.buffer = buffer
        self.staleness_exponent = staleness_exponent
        self.max_staleness = max_staleness
        self.concurrency = concurrency
        # By message id: who trains, on which model, since which round, and which training of that client it is.
        self.in_flight: dict[str, tuple[str, ArrayRecord, int, int]] = {}
        self.draws: dict[str, int] = {}
        self.selections = 0

    def idle(self, run: Federation) -> list[str]:
        """Clients that do not train just now."""
        busy = {name for name, *_ in self.in_flight.values()}
        return [name for name in run.clients if name not in busy]

    def updates(self, run: Federation, grid: ScreeningGrid, this: Round, draw: int) -> list[Update]:
        """Keep clients busy until ``buffer`` updates are here.

        With nobody left to wait for, those that came are enough if they are ``min_clients``; RunFailed otherwise.
        """
        askable(run, grid, this, self.idle(run), 0 if self.in_flight else run.config.min_clients)
        grid.traffic = Traffic()
        arrived: list[Update] = []
        dropped = 0
        while len(arrived) < self.buffer:
            # Who failed is not asked again before the next aggregation: it might fail at once, without end.
            failed = {item.client for item in grid.rejected if item.round == this.round}
            self._keep_busy(run, grid, this, failed)
            if not self.in_flight:
                break
            with this.timed("train"):
                good = grid.arrivals(self.in_flight, LOOK_SECONDS)
            for asked, reply in without_outliers(run, grid, good):
                name, start, since, number = self.in_flight.pop(asked.metadata.message_id)
                accept(run, name, reply, number, self.selections)
                staleness = this.round - since
                if staleness > self.max_staleness:
                    dropped += 1
                else:
                    scale = (1 + staleness) ** -self.staleness_exponent
                    arrived.append(Update(name, reply, start, staleness, scale))
            for lost in [message_id for message_id in self.in_flight if not grid.waits_for(message_id)]:
                del self.in_flight[lost]
        book(grid, this)
        if len(arrived) < min(self.buffer, run.config.min_clients):
            raise too_few(this, len(arrived), run.config.min_clients)
        versions = {id(start): start for _, start, *_ in self.in_flight.values()}
        this.bytes["versions"] = sum(len(array.data) for start in versions.values() for array in start.values())
        arrived.sort(key=lambda update: update.client)
        names = labels([update.client for update in arrived])
        this.strategy["staleness"] = {name: update.staleness for name, update in zip(names, arrived, strict=True)}
        this.strategy["dropped"] = dropped
        return arrived

    def _keep_busy(self, run: Federation, grid: ScreeningGrid, this: Round, failed: set[str]) -> None:
        grid.refresh()
        absent = grid.absent(run.clients)
        idle = [name for name in self.idle(run) if name not in failed and name not in absent]
        together = self.concurrency or run.axes["selection"].size(len(run.clients))
        free = together - len(self.in_flight)
        if not idle or free < 1:
            return
        self.selections += 1
        names = select(run, grid, this, idle, min(free, len(idle)), self.selections)
        draws = {name: self.draws.get(name, 0) + 1 for name in names}
        self.draws |= draws
        with this.timed("train"):
            messages = training_messages(run, grid, this, names, draws)
            ids = grid.post(messages, timeout=run.config.round_timeout)
        for number, message in zip(ids, messages, strict=True):
            name = grid.name_of(message)
            self.in_flight[number] = (name, run.cohorts[name], this.round, draws[name])

    def state_dict(self) -> dict[str, Any]:
        """How often each client was asked, and how often clients were selected; who trains when a run ends is asked
        anew."""
        return {"draws": dict(self.draws), "selections": self.selections}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the counts."""
        self.draws, self.selections = dict(state["draws"]), int(state["selections"])


def askable(run: Federation, grid: ScreeningGrid, this: Round, names: Sequence[str], least: int) -> list[str]:
    """Those of the named clients that are connected and owe no reply.

    Waits for ``runtime.node_timeout`` seconds while they are fewer than ``least``; RunFailed where they still are then.
    """
    patience = float(run.config.runtime.get("node_timeout", 0.0))
    end = time.monotonic() + patience
    while True:
        grid.check_stop()
        grid.refresh()
        this.absent = grid.absent(run.clients)
        found = [name for name in names if name not in this.absent]
        why = "; ".join(f"client {name}: {reason}" for name, reason in this.absent.items())
        if len(found) >= min(least, len(names)):
            if why:
                log(WARNING, "round %d: not asked: %s", this.round, why)
            return found
        if time.monotonic() > end:
            raise RunFailed(
                f"round {this.round}: {len(found)} of {len(names)} clients can be asked after "
                f"{patience:g} seconds, expected at least {least} ({why})"
            )
        time.sleep(POLL_SECONDS)


def without_outliers(
    run: Federation, grid: ScreeningGrid, answers: Sequence[tuple[Message, Message]]
) -> list[tuple[Message, Message]]:
    """The answers to training whose updates are not far longer than the others'; those are rejected."""
    numbers = [asked.metadata.message_id for asked, _ in answers]
    reasons = run.axes[OUTLIERS].reasons({number: grid.norms.pop(number) for number in numbers})
    for asked, _ in answers:
        if reason := reasons.get(asked.metadata.message_id):
            grid.reject(grid.name_of(asked), reason)
    return [(asked, reply) for asked, reply in answers if asked.metadata.message_id not in reasons]


def accept(run: Federation, name: str, reply: Message, draw: int, key: int) -> None:
    """Note that a client's training number ``draw`` counts, and tell the selection, whose latest number is ``key``."""
    run.accepted[name] = draw
    metrics = next(iter(reply.content.metric_records.values()))
    run.axes["selection"].observe(key, name, dict(metrics))


def select(run: Federation, grid: ScreeningGrid, this: Round, names: Sequence[str], count: int, key: int) -> list[str]:
    """The clients that train next, in the order of their names."""

    def ask(asked: Sequence[str]) -> dict[str, float]:
        return training_losses(run, grid, this, asked)

    candidates = [Candidate(name, run.clients[name].examples, seconds_of(run, name)) for name in names]
    with this.timed("select"):
        chosen: list[str] = run.axes["selection"].select(key, candidates, count, ask)
    book(grid, this)
    if len(chosen) < len(run.clients):
        this.selection.setdefault("chosen", []).append(chosen)
    return chosen


def seconds_of(run: Federation, name: str) -> float:
    """Seconds that a client's training takes by its declared speed."""
    rate = float(run.config.runtime.get("examples_per_second", 100.0)) * run.clients[name].speed
    return run.clients[name].examples * int(run.config.local_epochs) / rate


def training_losses(run: Federation, grid: ScreeningGrid, this: Round, names: Sequence[str]) -> dict[str, float]:
    """Loss of the model that each client would be sent, on its own training images; what asking costs is counted."""
    messages = evaluation_messages(run, grid, this, names, "train")
    before = grid.traffic
    grid.traffic = Traffic()
    replies = grid.send_and_receive(messages, timeout=run.config.round_timeout)
    asked = this.selection.setdefault("asked", {"clients": [], "bytes": 0})
    asked["clients"] += list(names)
    asked["bytes"] += grid.traffic.down + grid.traffic.up
    grid.traffic = before
    return {name: float(found["loss"]) for name, found in reply_metrics(grid, replies).items()}


def reply_metrics(grid: ScreeningGrid, replies: Iterable[Message]) -> dict[str, dict[str, Any]]:
    """Metrics by client name, in the order of names."""
    found = {
        grid.client_names[reply.metadata.src_node_id]: dict(next(iter(reply.content.metric_records.values())))
        for reply in replies
    }
    return dict(sorted(found.items()))


def evaluation_messages(
    run: Federation, grid: ScreeningGrid, this: Round, names: Sequence[str], split: str
) -> list[Message]:
    """What the named clients are sent to test their model on their images of a split, ``train`` or ``test``."""
    config = ConfigRecord({"run": run.id, "split": split})
    made = []
    for cohort, members in run.cohorts.members(names).items():
        view = grid.only(nodes_of(grid, members))
        for message in run.client_strategy.configure_evaluate(this.round, run.cohorts.models[cohort], config, view):
            made.append(_personal(message, run.position(grid.name_of(message))))
    return made


def training_messages(
    run: Federation, grid: ScreeningGrid, this: Round, names: Sequence[str], draws: Mapping[str, int]
) -> list[Message]:
    """What the named clients are sent: their cohort's model, and what only they need to know."""
    if PRIVACY in run.axes:
        run.axes[PRIVACY].spend(names)
    config = ConfigRecord({"run": run.id, "report": list(run.axes["selection"].report)})
    control = run.axes[CONTROL].arrays if CONTROL in run.axes else None
    made = []
    for cohort, members in run.cohorts.members(names).items():
        view = grid.only(nodes_of(grid, members))
        for message in run.client_strategy.configure_train(this.round, run.cohorts.models[cohort], config, view):
            name = grid.name_of(message)
            own = {"draw": draws[name], **run.position(name)}
            made.append(_personal(message, own, control))
    return made


def _personal(message: Message, values: Mapping[str, int], control: ArrayRecord | None = None) -> Message:
    """The message with further config values; until here all messages of a round share one content."""
    content = RecordDict(dict(message.content))
    for key, config in message.content.config_records.items():
        content[key] = ConfigRecord({**config, **values})
    if control is not None:
        content[CONTROL] = control
    message.content = content
    return message


def nodes_of(grid: ScreeningGrid, names: Iterable[str]) -> list[int]:
    """Node ids of the named clients."""
    wanted = set(names)
    return [node for node, name in grid.client_names.items() if name in wanted]


def book(grid: ScreeningGrid, this: Round) -> None:
    """Note on the round what the grid rejected in it, and the bytes it moved since they were last noted."""
    found = [item for item in grid.rejected if item.round == this.round]
    this.rejected = [Rejected(**vars(item)) for item in sorted(found, key=lambda item: item.client)]
    this.bytes["down"] = this.bytes.get("down", 0) + grid.traffic.down
    this.bytes["up"] = this.bytes.get("up", 0) + grid.traffic.up
    grid.traffic = Traffic()


def too_few(this: Round, found: int, expected: int) -> RunFailed:
    """The error of a round that cannot go on."""
    told = [f"client {item.client}: {item.reason}" for item in this.rejected]
    told += [f"client {name}: {reason}" for name, reason in this.absent.items()]
    more = [f"and {len(told) - MOST_TOLD} more"] if len(told) > MOST_TOLD else []
    reasons = "; ".join([*told[:MOST_TOLD], *more])
    return RunFailed(f"round {this.round}: {found} good replies, expected at least {expected} ({reasons})")
