"""What a federation is while it runs: its clients, the models they are sent, its rounds, its axes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from flwr.app import ArrayRecord, Message
from omegaconf import DictConfig
from torch import Tensor

from fedgh_app.config.combinations import is_central
from fedgh_app.pose.data.records import DatasetSpec
from fedgh_app.runs.history import Round

if TYPE_CHECKING:
    from fedgh_app.grids.screening import ScreeningGrid

GLOBAL = "global"


@dataclass(frozen=True)
class ClientInfo:
    """What a client said of itself at the start.

    Attributes:
        speed: how fast it declares to train, relative to the others.
    """

    name: str
    label: str
    examples: int
    test_examples: int
    keypoints: tuple[str, ...] = ()
    speed: float = 1.0


@dataclass(frozen=True, eq=False)
class Update:
    """One client's training that the server accepted.

    Attributes:
        start: the model that the client was sent.
        staleness: aggregations between then and now.
        scale: what its staleness leaves of it.
    """

    client: str
    reply: Message
    start: ArrayRecord
    staleness: int = 0
    scale: float = 1.0


class Cohorts:
    """Which clients share a model: all of them one, or each cluster or edge its own.

    Attributes:
        models: the shared arrays by cohort.
        of: cohort by client name.
    """

    def __init__(self, clients: Iterable[str], arrays: ArrayRecord) -> None:
        self.models = {GLOBAL: arrays}
        self.of = dict.fromkeys(clients, GLOBAL)

    def __getitem__(self, client: str) -> ArrayRecord:
        """The model that a client is sent."""
        return self.models[self.of[client]]

    def members(self, clients: Iterable[str] | None = None) -> dict[str, list[str]]:
        """Client names by cohort, of ``clients`` or of all, in the order of names; cohorts without any are left out."""
        found: dict[str, list[str]] = {}
        for client in sorted(self.of if clients is None else clients):
            found.setdefault(self.of[client], []).append(client)
        return dict(sorted(found.items()))

    def regroup(self, models: Mapping[str, ArrayRecord], of: Mapping[str, str]) -> None:
        """Take other cohorts."""
        self.models, self.of = dict(models), dict(of)

    @contextmanager
    def restored_on_failure(self) -> Iterator[None]:
        """A block that raises leaves the models as they were: a run that ends in a round keeps those of the last."""
        models, of = dict(self.models), dict(self.of)
        try:
            yield
        except BaseException:
            self.regroup(models, of)
            raise

    def share(self, arrays: ArrayRecord) -> None:
        """Give every cohort the same model."""
        self.models = dict.fromkeys(self.models, arrays)


@dataclass
class Federation:
    """A run as its parts see it.

    Attributes:
        config: the composed config.
        directory: the run directory.
        spec: the data set; of several, the first.
        clients: the clients by name, in the order of their names.
        strategy: the Flower strategy whose model is evaluated.
        client_strategy: the one whose messages clients answer; at the edge it may be another.
        cohorts: which clients share which model.
        mode: when the server goes on.
        id: what clients file their own state under, unique to the run.
        axes: the other parts of the server that carry something from round to round, by config group.
        history: rounds so far, round 0 first.
        accepted: the draw of the last update that was accepted from each client.
        settled: the same as the latest checkpoint holds it; None where there are no checkpoints.
        session: how often the run was resumed.
        earlier: seconds that the run took before it was resumed, as `seconds` gives them.
    """

    config: DictConfig
    directory: Path
    spec: DatasetSpec
    clients: dict[str, ClientInfo]
    strategy: Any
    client_strategy: Any
    cohorts: Cohorts
    mode: Mode
    id: str = ""
    axes: dict[str, Any] = field(default_factory=dict)
    history: list[Round] = field(default_factory=list)
    accepted: dict[str, int] = field(default_factory=dict)
    settled: dict[str, int] | None = None
    session: int = 0
    earlier: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    rounds_started: float | None = None

    @property
    def is_central(self) -> bool:
        """See `is_central`."""
        return is_central(self.config)

    @property
    def arrays(self) -> ArrayRecord:
        """The model of all clients; ValueError where there is more than one."""
        models = list({id(model): model for model in self.cohorts.models.values()}.values())
        if len(models) != 1:
            raise ValueError(f"{len(models)} models, one a cohort; there is no model of all clients")
        return models[0]

    def state_dict(self) -> dict[str, Tensor]:
        """The model of all clients as tensors."""
        return tensors(self.arrays)

    def server_state(self) -> dict[str, Any]:
        """What the server carries from round to round beside the models; tensors at the leaves."""
        edge = {} if self.client_strategy is self.strategy else {"edge": self.client_strategy.state_dict()}
        return {
            "id": self.id,
            "session": self.session,
            "strategy": self.strategy.state_dict(),
            **edge,
            "axes": {name: part.state_dict() for name, part in self._stateful()},
            "accepted": dict(self.accepted),
            "cohorts": dict(self.cohorts.of),
            "seconds": self.seconds(),
        }

    def load_server_state(self, state: Mapping[str, Any], models: Mapping[str, ArrayRecord]) -> None:
        """Go on from what `server_state` returned, and the models of the cohorts that it names."""
        self.id, self.session = str(state["id"]), int(state["session"])
        self.strategy.load_state_dict(state["strategy"])
        if state["edge"]:
            self.client_strategy.load_state_dict(state["edge"])
        for name, part in self._stateful():
            part.load_state_dict(state["axes"][name])
        self.accepted = {name: int(draw) for name, draw in state["accepted"].items()}
        self.settled = dict(self.accepted)
        self.cohorts.regroup(models, state["cohorts"])
        self.earlier = dict(state["seconds"])

    def _stateful(self) -> list[tuple[str, Any]]:
        """The parts, beside the strategies, that carry something from round to round."""
        return [(name, part) for name, part in {**self.axes, "mode": self.mode}.items() if hasattr(part, "state_dict")]

    def seconds(self) -> dict[str, float]:
        """Wall time until now: ``total`` from the first query on, ``rounds`` of the rounds with their callbacks."""
        now = time.perf_counter()
        since = {"total": self.started, "rounds": now if self.rounds_started is None else self.rounds_started}
        return {name: self.earlier.get(name, 0.0) + now - start for name, start in since.items()}

    def position(self, client: str) -> dict[str, int]:
        """What a client is told of where the server stands with it; see `fedgh_app.client.local_state`."""
        accepted = self.accepted.get(client, 0)
        settled = accepted if self.settled is None else self.settled.get(client, 0)
        return {"acknowledged": accepted, "settled": settled, "session": self.session}

    def due(self, every: int, server_round: int) -> bool:
        """Whether something done every ``every`` rounds, and after the last, is done after this one."""
        return every > 0 and (server_round % every == 0 or server_round == self.config.rounds)


def tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    """The arrays as tensors over the same memory; not to be written to."""
    return {key: torch.from_numpy(array.numpy()) for key, array in arrays.items()}


class Topology(Protocol):
    """How the updates of a round become the next models."""

    def run_round(self, run: Federation, grid: ScreeningGrid, this: Round) -> None:
        """Let clients train and give every cohort its next model."""


class Mode(Protocol):
    """When the server goes on: after everybody whom it asked, or after the first few."""

    def updates(self, run: Federation, grid: ScreeningGrid, this: Round, draw: int) -> Sequence[Update]:
        """The next updates to aggregate, in the order of names."""

    def idle(self, run: Federation) -> list[str]:
        """Names of the clients that nobody waits for."""
