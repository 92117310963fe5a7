"""A federation in this process whose clients may fall silent, die, go away and come back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import Error, Message
from flwr.proto.node_pb2 import NodeInfo
from recording import Recording

from fedgh_app.assembly.server import Assembly
from fedgh_app.callbacks.central_evaluation import CentralEvaluation
from fedgh_app.callbacks.checkpoint import Checkpoint
from fedgh_app.callbacks.history import History
from fedgh_app.callbacks.model import Model
from fedgh_app.client_app import app as client_app
from fedgh_app.config.compose import compose_config, join_overrides
from fedgh_app.server.federation import Federation
from fedgh_app.server.loop import federate


class Network(Recording):
    """Clients that may fall silent, die, go away and come back."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.silent: set[int] = set()  # nodes whose replies are held back
        self.errors: dict[int, tuple[int, str]] = {}  # what the engine answers in a node's place
        self.offline: set[int] = set()

    def get_node_ids(self) -> list[int]:
        return [node for node in super().get_node_ids() if node not in self.offline]

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node, name=f"site-{node}") for node in self.get_node_ids()]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        held = [entry for entry in self._ready if entry[2].metadata.src_node_id in self.silent]
        for entry in held:
            self._ready.remove(entry)
        found = super().pull_messages(message_ids)
        self._ready += held
        return [self._error(reply) for reply in found]

    def _error(self, reply: Message) -> Message:
        code, reason = self.errors.get(reply.metadata.src_node_id, (None, ""))
        if code is None or reply.metadata.message_type != "train":
            return reply
        asked = next(m for m in self.sent if m.metadata.message_id == reply.metadata.reply_to_message_id)
        return Message(Error(code, reason), reply_to=asked)


def federation(
    overrides: list[str],
    directory: Path,
    app: Any = client_app,
    *,
    before: Callable[[Network, int], None] = lambda grid, server_round: None,
    more: Iterable[Any] = (),
) -> tuple[Federation, Network]:
    """A federation of four clients over a `Network`, which ``before`` may disturb before each round."""
    config = compose_config(overrides)
    assembly = Assembly(config)
    assembly.data.deal(4)
    nodes = [{"partition-id": number, "num-partitions": 4} for number in range(4)]
    directory.mkdir(exist_ok=True)
    grid = Network(app, nodes, {"overrides": join_overrides(overrides)})
    done = iter(range(1, config.rounds + 2))
    hooks = [CentralEvaluation(config.evaluate.central_every), History(), *more, Checkpoint(1), Model()]
    made = assembly.federation(directory)
    federate(made, grid, hooks, watch=lambda: before(grid, next(done)))
    return made, grid
