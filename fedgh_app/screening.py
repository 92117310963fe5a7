"""A Grid that checks every reply before a strategy sees it.

Flower's strategies raise on the first odd reply, which would let one faulty client end the run of all. Here a bad reply
is set aside with its client's name and the reason, and the round goes on with the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from fedgh_app.errors import RunFailed
from strategies.npy import flat, header

POLL_SECONDS = 0.05
STOP_FILE = "stop"


@dataclass(frozen=True)
class Rejected:
    """A reply that no strategy saw."""

    round: int
    client: str
    reason: str


@dataclass
class Traffic:
    """Bytes of array data sent to clients and received from them."""

    down: int = 0
    up: int = 0


def array_bytes(content: RecordDict) -> int:
    """Bytes of array data in a message."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


@dataclass
class ScreeningGrid(Grid):
    """Passes messages to ``inner`` and keeps only the good replies.

    Attributes:
        inner: the grid that carries the messages.
        client_names: client name by node id, known after the first query.
        round: the round that rejections are booked under.
        rejected: every rejected reply of the run.
        traffic: bytes since it was last set.
        expected: names the metrics that the named client's reply to a message type must hold; None to accept any.
        stop_file: once this file exists, waiting ends with `RunFailed`: somebody wants the run to stop.
    """

    inner: Grid
    client_names: dict[int, str] = field(default_factory=dict)
    round: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)
    expected: Callable[[str, str], frozenset[str] | None] = lambda client, kind: None
    stop_file: Path | None = None
    _waiting: dict[str, tuple[Message, float]] = field(default_factory=dict)  # with the time.monotonic() of its end

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send, wait for at most ``timeout`` seconds, and return the good replies in the order of sending."""
        ids = self.post(messages, timeout=timeout)
        replies: dict[str, Message] = {}
        while any(number in self._waiting for number in ids):
            replies |= {reply.metadata.reply_to_message_id: reply for _, reply in self.arrivals(ids)}
        return [replies[number] for number in ids if number in replies]

    def post(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[str]:
        """Send without waiting; a message has ``timeout`` seconds to be answered. Returns the messages' ids."""
        sent = list(messages)
        self.inner.push_messages(sent)
        end = math.inf if timeout is None else time.monotonic() + timeout
        for message in sent:
            # An error reply may carry the SuperLink's node id: only the message that it answers tells whose it is.
            self._waiting[message.metadata.message_id] = (message, end)
            self.traffic.down += array_bytes(message.content)
        return [message.metadata.message_id for message in sent]

    def arrivals(self, ids: Iterable[str]) -> list[tuple[Message, Message]]:
        """Wait until some of the posted messages ``ids`` are answered or overdue; the good replies, each after what it
        answers. Empty where all that came was bad, or nothing is waited for.
        """
        asked_for = [number for number in ids if number in self._waiting]
        good: list[tuple[Message, Message]] = []
        while asked_for:
            if self.stop_file is not None and self.stop_file.exists():
                raise RunFailed("stopped")
            arrived = list(self.inner.pull_messages(asked_for))
            for reply in arrived:
                asked, _ = self._waiting.pop(reply.metadata.reply_to_message_id)
                if reply.has_content():
                    self.traffic.up += array_bytes(reply.content)
                client = self.name_of(asked)
                if reason := fault(asked, reply, self.expected(client, asked.metadata.message_type)):
                    self.reject(asked, reason)
                else:
                    good.append((asked, reply))
            now = time.monotonic()
            overdue = [number for number in asked_for if number in self._waiting and self._waiting[number][1] < now]
            for number in overdue:
                self.reject(self._waiting.pop(number)[0], "no reply within the time it had")
            if arrived or overdue:
                break
            time.sleep(POLL_SECONDS)
        # By name, as everything: not by who failed first.
        self.rejected.sort(key=lambda item: (item.round, item.client))
        return good

    def waits_for(self, number: str) -> bool:
        """Whether the posted message of this id is neither answered nor overdue."""
        return number in self._waiting

    def only(self, node_ids: Iterable[int]) -> Grid:
        """This grid as somebody sees it for whom ``node_ids`` are all nodes."""
        return _Part(self, list(node_ids))

    def name_of(self, message: Message) -> str:
        """Name of the client that a message is for; its node id before the query."""
        node = message.metadata.dst_node_id
        return self.client_names.get(node, str(node))

    def reject(self, asked: Message, reason: str) -> None:
        """Book the reply to ``asked`` as rejected."""
        self.rejected.append(Rejected(self.round, self.name_of(asked), reason))

    def set_run(self, run: Any) -> None:
        """See `Grid`."""
        self.inner.set_run(run)

    @property
    def run(self) -> Any:
        """See `Grid`."""
        return self.inner.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """See `Grid`."""
        return self.inner.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """See `Grid`."""
        return self.inner.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """See `Grid`."""
        return self.inner.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid`."""
        return self.inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid`."""
        return self.inner.pull_messages(message_ids)


class _Part(ScreeningGrid):
    """A grid with only some of another's nodes."""

    def __init__(self, whole: ScreeningGrid, node_ids: list[int]) -> None:
        vars(self).update(vars(whole))  # the same books: what is rejected or sent is the whole grid's
        self._node_ids = node_ids

    def get_node_ids(self) -> list[int]:
        """The nodes of this part."""
        return self._node_ids


def fault(asked: Message, reply: Message, expected: frozenset[str] | None = None) -> str | None:
    """What is wrong with ``reply``, in one line; None for a good one.

    Args:
        asked: the message that it answers, whose config may name further metrics under ``report``.
        reply: the reply.
        expected: the metrics it must hold beside those; None to accept any.
    """
    if reply.has_error():
        return reply.error.reason.strip().splitlines()[-1] if reply.error.reason else f"error {reply.error.code}"
    content = reply.content
    kind = asked.metadata.message_type
    if kind == MessageType.QUERY:
        return _query_fault(content)
    if len(content.metric_records) != 1:
        return f"{len(content.metric_records)} MetricRecords; expected 1"
    metrics = next(iter(content.metric_records.values()))
    if expected is not None:
        config = next(iter(asked.content.config_records.values()), ConfigRecord())
        expected = expected | frozenset(config.get("report", []))  # type: ignore[arg-type]
    if reason := _metric_fault(metrics, expected):
        return reason
    if kind != MessageType.TRAIN:
        return None
    if len(content.array_records) != 1:
        return f"{len(content.array_records)} ArrayRecords; expected 1"
    sent = next(iter(asked.content.array_records.values()))
    return _array_fault(sent, next(iter(content.array_records.values())))


def _query_fault(content: RecordDict) -> str | None:
    said = next(iter(content.config_records.values()), None)
    if len(content.config_records) != 1 or said is None:
        return f"{len(content.config_records)} ConfigRecords; expected 1 that describes the client"
    kinds = {"name": str, "label": str, "keypoints": str, "num-examples": int, "num-test": int, "speed": float}
    names = {str: "text", int: "a whole number", float: "a number"}
    for key, kind in kinds.items():
        if not isinstance(said.get(key), kind):
            return f"{key} is {said.get(key)!r}; expected {names[kind]}"
    return None


def _metric_fault(metrics: MetricRecord, expected: frozenset[str] | None) -> str | None:
    if expected is not None:
        if missing := sorted(expected - metrics.keys()):
            return f"metric {missing[0]} is missing"
        if extra := sorted(metrics.keys() - expected):
            return f"metric {extra[0]} was not asked for"
        if lists := [key for key, value in metrics.items() if isinstance(value, list)]:
            return f"metric {lists[0]} is a list; expected a number"
    examples = metrics.get("num-examples")
    if not isinstance(examples, int | float) or not examples > 0:
        return f"num-examples is {examples}; expected a positive number"
    if not metrics.get("steps", 1) > 0:  # type: ignore[operator]
        return f"steps is {metrics['steps']}; expected a positive number"
    for key, value in metrics.items():
        values = value if isinstance(value, list) else [value]
        if not all(math.isfinite(number) for number in values):
            return f"metric {key} is {value}; expected finite numbers"
    # FedReID's weight is a distance; rounding may take it a little below 0.
    if (distance := metrics.get("cosine-distance", 0.0)) < -1e-5:  # type: ignore[operator]
        return f"metric cosine-distance is {distance}; expected at least 0"
    return None


def _array_fault(sent: ArrayRecord, received: ArrayRecord) -> str | None:
    if missing := [key for key in sent if key not in received]:
        return f"array {missing[0]} is missing"
    if extra := [key for key in received if key not in sent]:
        return f"array {extra[0]} was never sent"
    for key, array in received.items():
        wanted = sent[key]
        if tuple(array.shape) != tuple(wanted.shape):
            return f"array {key} has shape {tuple(array.shape)}; expected {tuple(wanted.shape)}"
        if array.dtype != wanted.dtype:
            return f"array {key} has dtype {array.dtype}; expected {wanted.dtype}"
        try:
            found = header(array)
            values = flat(array)
        except ValueError as error:
            return f"array {key} cannot be read: {str(error).splitlines()[0]}"
        if found.shape != tuple(wanted.shape) or str(found.dtype) != wanted.dtype:
            return f"array {key} holds {found.dtype} of shape {found.shape}, not what it declares"
        if not _finite(values):
            return f"array {key} holds NaN or infinity"
    return None


def _finite(values: np.ndarray) -> bool:
    if not np.issubdtype(values.dtype, np.floating):
        return True
    # One pass without a mask: the square sum is finite for all but huge values, which the exact test then settles.
    with np.errstate(over="ignore", invalid="ignore"):
        if values.dtype != np.float16 and math.isfinite(float(np.dot(values, values))):
            return True
    return bool(np.isfinite(values).all())
