"""A federation in this process whose messages can be read afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.app import Message

from fedgh_app.assembly.server import Assembly
from fedgh_app.callbacks.central_evaluation import CentralEvaluation
from fedgh_app.callbacks.checkpoint import Checkpoint
from fedgh_app.callbacks.history import History
from fedgh_app.callbacks.model import Model
from fedgh_app.client_app import app as client_app
from fedgh_app.config.compose import compose_config, join_overrides
from fedgh_app.grids.inprocess import InProcessGrid
from fedgh_app.server.callback import Callback
from fedgh_app.server.federation import Federation
from fedgh_app.server.loop import federate


class Recording(InProcessGrid):
    """Keeps every message and reply that passes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sent: list[Message] = []
        self.received: list[Message] = []

    def push_messages(self, messages: Any) -> list[str]:
        messages = list(messages)
        self.sent += messages
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Any) -> list[Message]:
        found = super().pull_messages(message_ids)
        self.received += found
        return found


def run(
    overrides: list[str],
    directory: Path,
    app: Any = client_app,
    *,
    count: int = 4,
    keep: int = 1,
    more: Iterable[Callback] = (),
) -> tuple[Federation, Recording]:
    """A federation of ``count`` clients without pictures but with ``more``, and the grid that saw all its messages.

    The run keeps ``keep`` checkpoints.
    """
    config = compose_config(overrides)
    assembly = Assembly(config)
    assembly.data.deal(count)
    nodes = [{"partition-id": number, "num-partitions": count} for number in range(count)]
    directory.mkdir(exist_ok=config.resume is not None)
    grid = Recording(
        app,
        nodes,
        {"overrides": join_overrides(overrides)},
        examples_per_second=config.runtime.examples_per_second,
        speeds=config.runtime.speeds,
    )
    federation = assembly.federation(directory)
    central = CentralEvaluation(config.evaluate.central_every)
    federate(federation, grid, [central, History(), Checkpoint(keep), Model(), *more])
    return federation, grid
