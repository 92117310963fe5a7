"""A federation small enough to write out: messages made by hand, and a grid that trains nothing."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

State = Mapping[str, np.ndarray]


def record(state: State) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in state.items()})


def numpy_state(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in arrays.items()}


def reply(node_id: int, state: State | ArrayRecord, metrics: Mapping[str, float] | int = 1) -> Message:
    arrays = state if isinstance(state, ArrayRecord) else record(state)
    metrics = {"num-examples": metrics} if isinstance(metrics, int) else metrics
    asked = Message(RecordDict(), node_id, "train")
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(dict(metrics))}), reply_to=asked)


def failure(node_id: int) -> Message:
    return Message(Error(code=0, reason="out of memory"), reply_to=Message(RecordDict(), node_id, "train"))


class FakeGrid(Grid):
    """Nodes that answer a message at once."""

    def __init__(self, node_ids: Sequence[int], answer: Callable[[Message], Message] | None = None) -> None:
        self.node_ids = list(node_ids)
        self.answer = answer

    def set_run(self, run) -> None: ...

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.node_ids)

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None) -> list[Message]:
        return [self.answer(message) for message in messages]


def started(strategy, state: State, node_ids: Sequence[int]):
    """Return the strategy as it is after it has sent the model."""
    strategy.configure_train(1, record(state), ConfigRecord(), FakeGrid(node_ids))
    return strategy


def aggregate(strategy, sent: State, clients: Mapping[int, tuple[State, Mapping[str, float] | int]], **options):
    """Run one round with one reply per node id; return the next model."""
    strategy.min_train_nodes = strategy.min_available_nodes = len(clients)
    started(strategy, sent, list(clients))
    replies = [reply(node_id, state, metrics) for node_id, (state, metrics) in clients.items()]
    arrays, _ = strategy.aggregate_train(options.get("server_round", 1), replies)
    return numpy_state(arrays)
