"""What a federation is while it runs: its clients, its global model, its rounds; and what a callback may hook into."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from flwr.app import ArrayRecord
from omegaconf import DictConfig

from fedgh_app.pose.records import DatasetSpec


@dataclass(frozen=True)
class ClientInfo:
    """What a client said of itself at the start."""

    name: str
    label: str
    examples: int
    test_examples: int


@dataclass
class Round:
    """What happened in one round; round 0 is the evaluation before training. One line of ``history.jsonl``."""

    round: int
    train: dict[str, Any] = field(default_factory=dict)
    evaluate: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's wall time to ``seconds[phase]``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started


@dataclass
class Federation:
    """A run as callbacks see it.

    Attributes:
        config: the composed config.
        directory: the run directory.
        spec: the data set.
        clients: the clients by name, in the order of their names.
        strategy: the Flower strategy.
        arrays: the global model.
        history: rounds so far, round 0 first.
    """

    config: DictConfig
    directory: Path
    spec: DatasetSpec
    clients: dict[str, ClientInfo]
    strategy: Any
    arrays: ArrayRecord
    history: list[Round] = field(default_factory=list)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The global model as tensors."""
        return {key: torch.from_numpy(array.numpy()) for key, array in self.arrays.items()}

    def due(self, every: int, server_round: int) -> bool:
        """Whether something done every ``every`` rounds, and after the last, is done after this one."""
        return every > 0 and (server_round % every == 0 or server_round == self.config.rounds)


class Callback(Protocol):
    """Something done after every round, round 0 included."""

    def after_round(self, run: Federation, this: Round) -> None:
        """Called when the round's numbers are in; may add to them."""

    def close(self, run: Federation, failure: str | None) -> None:
        """Called once at the end, with the reason where the run failed."""
