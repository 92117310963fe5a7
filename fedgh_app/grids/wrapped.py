"""A Grid around another, for what stands between the ServerApp's loop and the engine that carries its messages."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from flwr.serverapp import Grid

Method = TypeVar("Method", bound=Callable[..., Any])


def _passed_on(method: Method) -> Method:
    """A method of `Grid` as the inner grid's own."""
    name = method.__name__

    def call(self: "WrappedGrid", *args: Any, **kwargs: Any) -> Any:
        return getattr(self.inner, name)(*args, **kwargs)

    return call  # type: ignore[return-value]  # with the inner one's signature


@dataclass
class WrappedGrid(Grid):
    """Passes everything on to ``inner``, which carries the messages; a subclass says what it does otherwise."""

    inner: Grid

    run = property(lambda self: self.inner.run)
    set_run = _passed_on(Grid.set_run)
    create_message = _passed_on(Grid.create_message)
    get_node_ids = _passed_on(Grid.get_node_ids)
    get_nodes = _passed_on(Grid.get_nodes)
    push_messages = _passed_on(Grid.push_messages)
    pull_messages = _passed_on(Grid.pull_messages)
    send_and_receive = _passed_on(Grid.send_and_receive)
