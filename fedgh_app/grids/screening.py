"""A Grid that checks every reply before a strategy sees it, and knows which of the clients can be asked.

Flower's strategies raise on the first odd reply, which would let one faulty client end the run of all. Here a bad reply
is set aside with its client's name and the reason, and the round goes on with the others.
"""

import math
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from logging import WARNING
from pathlib import Path

from flwr.app import Message, MessageType, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from fedgh_app.errors import RunFailed
from fedgh_app.grids.reply_checks import OVERDUE, Expected, Norms, examine
from fedgh_app.grids.wrapped import WrappedGrid
from fedgh_app.runs.history import Rejected

# Between two looks for replies, each a request to the SuperLink: a fiftieth of the wait so far, in these bounds.
POLL_FRACTION = 0.02
POLL_SECONDS, POLL_SECONDS_AT_MOST = 0.05, 0.5

# Said by the simulation engine of a process that it does not replace: whoever is next sent to it fails too.
_DEAD_ACTOR = re.compile(r"<class 'ray\.exceptions\.(\w*(Actor|Worker|Node|Raylet)\w*|OutOfMemory)Error'>")


@dataclass
class Traffic:
    """Bytes of array data sent to clients and received from them."""

    down: int = 0
    up: int = 0


def array_bytes(content: RecordDict) -> int:
    """Bytes of array data in a message."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


@dataclass
class ScreeningGrid(WrappedGrid):
    """Passes messages to ``inner`` and keeps only the good replies.

    A client that did not answer in time may still be at work, and what it is sent then would wait behind that. So it
    owes a reply, and nobody asks it, until its node has answered the small question that it is put instead. In Flower's
    simulation any free process would answer that one: a client that owes a reply there is left alone for good.

    Nodes may go and come back. A node that comes back under another id is known again by the client's name, as soon as
    the id that had the name before is gone.
    """

    client_names: dict[int, str] = field(default_factory=dict)  # by node id, after the query; strategies read it
    round: int = 0  # that is under way
    rejected: list[Rejected] = field(default_factory=list)  # every rejected reply of the run
    traffic: Traffic = field(default_factory=Traffic)  # bytes since it was last set
    # What the named client's reply to a message must hold.
    expected: Callable[[str, Message], Expected] = lambda client, asked: Expected()
    # The name of the client of the run that a node describes itself as, if it is one.
    knows: Callable[[Message], str | None] = lambda reply: None
    stop_file: Path | None = None  # once it exists, waiting ends with `RunFailed`: somebody wants the run to stop
    simulated: bool = False  # whether clients run in Flower's simulation
    # Messages under way at a time while replies are waited for; None for all. Ten times a second the simulation looks
    # for every node through all that are: a thousand of each take a core for seconds that its few processes then lack.
    at_once: int | None = None
    norms: dict[str, Norms] = field(default_factory=dict)  # of good updates by the message they answer, until taken
    owing: set[str] = field(default_factory=set)  # clients that owe a reply
    away: set[str] = field(default_factory=set)  # clients whose node is not connected
    # Posted messages by id, with the client's name and the time.monotonic() of their end.
    _waiting: dict[str, tuple[Message, str, float]] = field(default_factory=dict)
    _questions: dict[str, Message] = field(default_factory=dict)  # put to nodes that are new or owe a reply
    _claims: dict[int, str] = field(default_factory=dict)  # nodes that go by the name of a client at another node
    _strangers: set[int] = field(default_factory=set)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send, wait for at most ``timeout`` seconds, and return the good replies in the order of sending."""
        return [reply for _, reply in self.answers(messages, timeout=timeout)]

    def answers(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[tuple[Message, Message]]:
        """The same, each reply after the message that it answers."""
        left = list(messages)
        end = math.inf if timeout is None else time.monotonic() + timeout
        ids: list[str] = []
        under_way: list[str] = []
        replies: dict[str, tuple[Message, Message]] = {}
        while left or under_way:
            free = len(left) if self.at_once is None else self.at_once - len(under_way)
            if left and free:
                next_ones, left, remaining = left[:free], left[free:], end - time.monotonic()
                if remaining > 0:
                    posted = self.post(next_ones, timeout=None if timeout is None else remaining)
                    ids, under_way = ids + posted, under_way + posted
                else:
                    for message in next_ones:
                        self.reject(self.name_of(message), OVERDUE)
            replies |= {asked.metadata.message_id: (asked, reply) for asked, reply in self.arrivals(under_way)}
            under_way = [number for number in under_way if number in self._waiting]
        return [replies[number] for number in ids if number in replies]

    def post(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[str]:
        """Send without waiting, and return the ids; Flower drops what is not answered within ``timeout`` seconds."""
        sent = list(messages)
        if timeout is not None:
            for message in sent:
                message.metadata.ttl = timeout + max(0.0, time.time() - message.metadata.created_at)
        self.inner.push_messages(sent)
        end = math.inf if timeout is None else time.monotonic() + timeout
        for message in sent:
            # An error reply may carry the SuperLink's node id: only the message that it answers tells whose it is.
            self._waiting[message.metadata.message_id] = (message, self.name_of(message), end)
            self.traffic.down += array_bytes(message.content)
        return [message.metadata.message_id for message in sent]

    def arrivals(self, ids: Iterable[str], patience: float = math.inf) -> list[tuple[Message, Message]]:
        """Wait until some of the posted messages ``ids`` are answered or overdue, or ``patience`` seconds have passed;
        the good replies, each after what it answers. Empty where all that came was bad, or nothing is waited for.

        Raises RunFailed where the run is to stop, or a process died that the simulation goes on sending clients to.
        """
        asked_for = [number for number in ids if number in self._waiting]
        good: list[tuple[Message, Message]] = []
        started = time.monotonic()
        while asked_for:
            self.check_stop()
            arrived = list(self.inner.pull_messages(asked_for))
            for reply in arrived:
                asked, client, _ = self._waiting.pop(reply.metadata.reply_to_message_id)
                if reply.has_content():
                    self.traffic.up += array_bytes(reply.content)
                elif self.simulated and _DEAD_ACTOR.match(str(reply.error.reason)):
                    raise RunFailed(
                        f"round {self.round}: the process of client {client} died, "
                        "and Flower's simulation does not replace it"
                    )
                verdict = examine(asked, reply, self.expected(client, asked))
                if not verdict.answered:
                    self.owing.add(client)
                if verdict.fault is not None:
                    self.reject(client, verdict.fault)
                    continue
                if verdict.norms is not None:
                    self.norms[asked.metadata.message_id] = verdict.norms
                good.append((asked, reply))
            if arrived:
                break
            now = time.monotonic()
            overdue = [number for number in asked_for if self._waiting[number][2] < now]
            for number in overdue:
                _, client, _ = self._waiting.pop(number)
                self.owing.add(client)
                self.reject(client, OVERDUE)
            if overdue or now - started > patience:
                break
            time.sleep(min(max(POLL_SECONDS, POLL_FRACTION * (time.monotonic() - started)), POLL_SECONDS_AT_MOST))
        return good

    def waits_for(self, number: str) -> bool:
        """Whether the posted message of this id is neither answered nor overdue."""
        return number in self._waiting

    def check_stop(self) -> None:
        """Raise RunFailed where somebody wants the run to stop."""
        if self.stop_file is not None and self.stop_file.exists():
            raise RunFailed("stopped")

    def refresh(self) -> None:
        """Find out who is connected, and take in what nodes said that are new or owed a reply."""
        online = set(self.inner.get_node_ids())
        if self._questions:
            for reply in self.inner.pull_messages(list(self._questions)):
                asked = self._questions.pop(reply.metadata.reply_to_message_id)
                if examine(asked, reply).fault is None:
                    self._hear(asked.metadata.dst_node_id, reply)
        for node, name in sorted(self._claims.items()):
            self._admit(node, name, online)
        self.away = {name for node, name in self.client_names.items() if node not in online}
        put = {asked.metadata.dst_node_id for asked in self._questions.values()}
        new = online - self.client_names.keys() - self._strangers - self._claims.keys()
        late = {node for node, name in self.client_names.items() if name in self.owing and node in online}
        questions = [
            Message(RecordDict(), node, MessageType.QUERY)
            for node in sorted((new | (set() if self.simulated else late)) - put)
        ]
        if questions:
            self.inner.push_messages(questions)
            self._questions |= {asked.metadata.message_id: asked for asked in questions}

    def _hear(self, node: int, reply: Message) -> None:
        name = self.knows(reply)
        if node in self.client_names:
            self.owing.discard(self.client_names[node])
        elif name is None:
            self._strangers.add(node)
            log(WARNING, "A node connected that is no client of this run; it is left out.")
        else:
            self._claims[node] = name

    def _admit(self, node: int, name: str, online: set[int]) -> None:
        """Let a node have a client's name once the node is gone that had it."""
        before = next(other for other, known in self.client_names.items() if known == name)
        if node not in online:
            del self._claims[node]
        elif before not in online:
            log(WARNING, "Client %s is back, as another node.", name)
            # What its node had been sent before is lost with it.
            for number in [key for key, (_, client, _) in self._waiting.items() if client == name]:
                del self._waiting[number]
                self.reject(name, "its node is gone; it is back as another")
            del self.client_names[before], self._claims[node]
            self.client_names[node] = name
            self.owing.discard(name)

    def absent(self, names: Iterable[str]) -> dict[str, str]:
        """Which of the named clients cannot be asked, and why."""
        return {
            name: "its node is not connected" if name in self.away else "it owes a reply"
            for name in sorted(names)
            if name in self.away or name in self.owing
        }

    def only(self, node_ids: Iterable[int]) -> Grid:
        """This grid as somebody sees it for whom ``node_ids`` are all nodes."""
        return _Part(self, list(node_ids))

    def name_of(self, message: Message) -> str:
        """Name of the client that a message is for; its node id before the query."""
        node = message.metadata.dst_node_id
        return self.client_names.get(node, str(node))

    def reject(self, client: str, reason: str) -> None:
        """Keep in mind that a client's reply was rejected, and why."""
        log(WARNING, "round %d: rejected client %s: %s", self.round, client, reason)
        self.rejected.append(Rejected(round=self.round, client=client, reason=reason))
        self.rejected.sort(key=lambda item: (item.round, item.client))  # as everything: not by who failed first


@dataclass
class _Part(WrappedGrid):
    """A grid with only some of another's nodes."""

    node_ids: list[int]

    def get_node_ids(self) -> list[int]:
        """See `Grid`."""
        return self.node_ids
