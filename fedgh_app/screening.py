"""A Grid that checks every reply before a strategy sees it.

Flower's strategies raise on the first odd reply, which would let one faulty client end the run of all. Here a bad reply
is set aside with its client's name and the reason, and the round goes on with the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
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
        expected: the metrics that a reply to each message type must hold; a type that is not listed is not checked.
        stop_file: once this file exists, waiting ends with `RunFailed`: somebody wants the run to stop.
    """

    inner: Grid
    client_names: dict[int, str] = field(default_factory=dict)
    round: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)
    expected: Mapping[str, frozenset[str]] = field(default_factory=dict)
    stop_file: Path | None = None

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send, wait for at most ``timeout`` seconds, and return the good replies in the order of sending."""
        sent = list(messages)
        self.inner.push_messages(sent)
        # An error reply may carry the SuperLink's node id: only the message that it answers tells whose it is.
        waiting = {message.metadata.message_id: message for message in sent}
        for message in sent:
            self.traffic.down += array_bytes(message.content)
        order = {message.metadata.message_id: place for place, message in enumerate(sent)}
        replies: list[Message] = []
        end = None if timeout is None else time.monotonic() + timeout
        while waiting:
            arrived = list(self.inner.pull_messages(list(waiting)))
            for reply in arrived:
                asked = waiting.pop(reply.metadata.reply_to_message_id)
                if reply.has_content():
                    self.traffic.up += array_bytes(reply.content)
                if reason := fault(asked, reply, self.expected.get(asked.metadata.message_type)):
                    self.reject(asked, reason)
                else:
                    replies.append(reply)
            if self.stop_file is not None and self.stop_file.exists():
                raise RunFailed("stopped")
            if not arrived:
                if end is not None and time.monotonic() > end:
                    break
                time.sleep(POLL_SECONDS)
        for asked in waiting.values():
            self.reject(asked, f"no reply within {timeout:g} seconds")
        # By name, as everything: not by who failed first.
        self.rejected.sort(key=lambda item: (item.round, item.client))
        replies.sort(key=lambda reply: order[reply.metadata.reply_to_message_id])
        return replies

    def reject(self, asked: Message, reason: str) -> None:
        """Book the reply to ``asked`` as rejected."""
        node = asked.metadata.dst_node_id
        self.rejected.append(Rejected(self.round, self.client_names.get(node, str(node)), reason))

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
    for key, kind in (("name", str), ("label", str), ("keypoints", str), ("num-examples", int), ("num-test", int)):
        if not isinstance(said.get(key), kind):
            return f"{key} is {said.get(key)!r}; expected {'text' if kind is str else 'a whole number'}"
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
