"""A Grid around another, for what stands between the ServerApp's loop and the engine that carries its messages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedgh_app.flower import NodeInfo


@dataclass
class WrappedGrid(Grid):
    """Passes everything on to ``inner``, as it is; a subclass says what it does otherwise.

    Attributes:
        inner: the grid that carries the messages.
    """

    inner: Grid

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

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See `Grid`."""
        return self.inner.send_and_receive(messages, timeout=timeout)
