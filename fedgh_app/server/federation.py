"""What a federation is while it runs: its clients, the models they are sent, its rounds, its parts."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from fedgh_app.config.settings import Runtime, Settings
from fedgh_app.data.federated import FederatedData
from fedgh_app.resources import Values
from fedgh_app.runs.history import Round
from fedgh_app.vision.threads import threads
from strategies.fedavg import FedAvg, State

if TYPE_CHECKING:
    from fedgh_app.server.modes import Mode
    from fedgh_app.server.parts.part import Part
    from fedgh_app.server.selection import Selection
    from fedgh_app.server.topologies import Topology
    from fedgh_app.task import Learner, Spec, Task

GLOBAL = "global"


@dataclass(frozen=True)
class ClientInfo:
    """What a client said of itself at the start."""

    name: str
    label: str
    examples: int
    test_examples: int
    predicts: tuple[str, ...] = ()  # what its head predicts: only compared, never read
    speed: float = 1.0  # how fast it declares to train, relative to the others


@dataclass(frozen=True, eq=False)
class Update:
    """One client's training that the server accepted."""

    client: str
    reply: Message
    start: ArrayRecord  # the model that the client was sent
    staleness: int = 0  # aggregations between then and now
    scale: float = 1.0  # what its staleness leaves of it

    @property
    def arrays(self) -> ArrayRecord:
        """The model that the client sent back."""
        return next(iter(self.reply.content.array_records.values()))


class Stateful:
    """What carries something from round to round; nothing, unless it says what."""

    def state_dict(self) -> State:
        """What is carried: tensors, or what JSON can hold."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Go on from what `state_dict` returned."""


class Cohorts:
    """Which clients share a model: all of them one, or each cluster or edge its own."""

    def __init__(self, clients: Iterable[str], arrays: ArrayRecord) -> None:
        self.models = {GLOBAL: arrays}  # the shared arrays by cohort
        self.of = dict.fromkeys(clients, GLOBAL)  # cohort by client name

    def __getitem__(self, client: str) -> ArrayRecord:
        """The model that a client is sent."""
        return self.models[self.of[client]]

    def members(self, clients: Iterable[str] | None = None) -> dict[str, list[str]]:
        """Client names by cohort, of ``clients`` or of all, in the order of names; cohorts without any are left out."""
        members: dict[str, list[str]] = {}
        for client in sorted(self.of if clients is None else clients):
            members.setdefault(self.of[client], []).append(client)
        return dict(sorted(members.items()))

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


@dataclass
class Federation:
    """A run as its parts see it: built from the config alone, and complete once its clients are known (`admit`)."""

    settings: Settings  # the single values of the run
    values: Values  # the resolved config as plain values, for what writes or shows it
    directory: Path  # of the run
    task: Task  # what models are trained for
    data: FederatedData  # its data sets, as far as the server has them
    spec: Spec  # the data set; of several, the first
    network: Values  # how the model is built, as its file tells it
    initial: ArrayRecord  # the shared arrays that round 1 starts from
    keeps_local: bool  # whether a part of the model stays on the clients
    learner: Callable[[], Learner]  # makes a new model, with all that its testing takes
    any_head: Callable[[], bool]  # whether what is shared fits clients whatever they predict
    strategy: FedAvg  # the Flower strategy whose model is evaluated
    client_strategy: FedAvg  # the one whose messages clients answer; at the edge it may be another
    mode: Mode  # when the server goes on
    topology: Topology  # how updates become the next models
    selection: Selection  # who is asked
    parts: dict[str, Part]  # what the other axes add to a round, by config group, in the order of their calls
    learning_rate: float  # of the clients' optimizer
    schedule: Callable[[int], float]  # the factor on it, by round
    clients: dict[str, ClientInfo] = field(default_factory=dict)  # by name, in the order of names
    cohorts: Cohorts = field(init=False)  # which clients share which model
    id: str = field(default_factory=lambda: uuid.uuid4().hex)  # what clients file their own state under
    history: list[Round] = field(default_factory=list)  # rounds so far, round 0 first
    accepted: dict[str, int] = field(default_factory=dict)  # the draw of each client's last accepted update
    settled: dict[str, int] | None = None  # the same as the latest checkpoint holds it; None without checkpoints
    session: int = 0  # how often the run was resumed
    earlier: dict[str, float] = field(default_factory=dict)  # seconds before it was resumed, as `seconds` gives them
    started: float = field(default_factory=time.perf_counter)
    rounds_started: float | None = None

    def __post_init__(self) -> None:
        self.cohorts = Cohorts(self.clients, self.initial)

    def admit(self, clients: Mapping[str, ClientInfo], names: dict[int, str]) -> None:
        """Begin with these clients. The table of ``names`` by node id is kept: a node may come back under another."""
        self.clients = dict(clients)
        self.cohorts = Cohorts(self.clients, self.initial)
        for strategy in (self.strategy, self.client_strategy):
            strategy.client_names = names
        self.topology.join(self)
        for part in self.parts.values():
            part.join(self)

    @property
    def is_central(self) -> bool:
        """Whether the server holds one whole model: nothing stays on the clients, and all share one."""
        return not self.keeps_local and self.topology.one_model

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

    def server_state(self) -> State:
        """What the server carries from round to round beside the models; tensors at the leaves."""
        return {
            "id": self.id,
            "session": self.session,
            **{name: part.state_dict() for name, part in self._stateful().items()},
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "accepted": dict(self.accepted),
            "cohorts": dict(self.cohorts.of),
            "seconds": self.seconds(),
        }

    def load_server_state(self, state: State, models: Mapping[str, ArrayRecord]) -> None:
        """Go on from what `server_state` returned, and the models of the cohorts that it names."""
        self.id, self.session = str(state["id"]), int(state["session"])
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        self.accepted = {name: int(draw) for name, draw in state["accepted"].items()}
        self.settled = dict(self.accepted)
        self.cohorts.regroup(models, state["cohorts"])
        self.earlier = dict(state["seconds"])

    def _stateful(self) -> dict[str, Stateful | FedAvg]:
        edge = {} if self.client_strategy is self.strategy else {"edge_strategy": self.client_strategy}
        others = {"mode": self.mode, "topology": self.topology, "selection": self.selection}
        return {"strategy": self.strategy, **edge, **others}

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
        return every > 0 and (server_round % every == 0 or server_round == self.settings.rounds)

    def threads(self) -> AbstractContextManager[None]:
        """A block in which torch may use the server's threads."""
        return server_threads(self.settings.runtime, self.mode.clients_rest)


def server_threads(runtime: Runtime, clients_rest: bool) -> AbstractContextManager[None]:
    """A block in which torch may use the server's threads; where clients never rest, no more than one of them has."""
    return threads((runtime.server_cpus if clients_rest else None) or runtime.client_cpus)


def tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    """The arrays as tensors over the same memory; not to be written to."""
    return {key: torch.from_numpy(array.numpy()) for key, array in arrays.items()}
