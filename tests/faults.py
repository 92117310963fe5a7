"""What a faulty client does, for federations in this process and for real runs, whose app `stage` makes faulty."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, Context, Message, RecordDict
from flwr.clientapp import ClientApp

Plan = Mapping[tuple[int, str], str]  # fault by round and client's name


def change_first(change: Callable[[np.ndarray], np.ndarray], ending: str = "weight") -> Callable[[RecordDict], None]:
    """Change the first array whose name ends so."""

    def apply(content: RecordDict) -> None:
        record = content["arrays"]
        key = next(key for key in record if key.endswith(ending))
        record[key] = Array(change(record[key].numpy().copy()))

    return apply


def claim(factor: int) -> Callable[[RecordDict], None]:
    """Count the examples ``factor`` times."""

    def apply(content: RecordDict) -> None:
        content["metrics"]["num-examples"] *= factor

    return apply


def lose_key(content: RecordDict) -> None:
    del content["arrays"][next(iter(content["arrays"]))]


def cut(content: RecordDict) -> None:
    key, array = next(iter(content["arrays"].items()))
    content["arrays"][key] = Array(array.dtype, array.shape, array.stype, array.data[:-3])


# What the client does to its good reply, and words of the reason for which it is rejected.
FAULTS: dict[str, tuple[Callable[[RecordDict], None], str]] = {
    "nan": (change_first(lambda w: w * np.float32("nan")), "holds NaN or infinity"),
    "infinity": (change_first(lambda w: w + np.float32("inf")), "holds NaN or infinity"),
    "missing key": (lose_key, "is missing"),
    "wrong shape": (change_first(lambda w: w[:1]), "has shape (1, "),
    "wrong dtype": (change_first(lambda w: w.astype(np.float64)), "has dtype float64; expected float32"),
    "truncated": (cut, "cannot be read"),
    "no examples": (claim(0), "num-examples is 0; expected a positive number"),
    "negative examples": (claim(-1), "expected a positive number"),
    "too many examples": (claim(3), "2 times what it declared at the start"),
    "long update": (change_first(lambda w: w * np.float32(1e6)), "update of norm"),
    "long statistics": (change_first(lambda w: w + np.float32(1e9), "running_var"), "running statistics of norm"),
}


def grow(content: RecordDict) -> None:
    """Weights that are finite, and beyond float32 once a server multiplies them."""
    record = content["arrays"]
    for key in [key for key in record if key.endswith("weight")]:
        record[key] = Array(np.full(record[key].shape, 1e37, np.float32))


SIGNALS = {"killed": signal.SIGKILL, "terminated": signal.SIGTERM}
INTERRUPTS = ("raises", "sleeps", *SIGNALS)


def interrupt(fault: str | None) -> None:
    """What keeps a client from ending its training."""
    if fault == "raises":
        raise MemoryError("out of memory")
    if fault in SIGNALS:
        os.kill(os.getpid(), SIGNALS[fault])
    if fault == "sleeps" or fault in SIGNALS:
        time.sleep(3600)


def name_of(context: Context) -> str:
    """The client's name."""
    return str(context.node_config.get("name", context.node_config.get("partition-id")))


def misbehaving(answer: Callable[[Message, Context], Message], plan: Plan) -> Callable[[Message, Context], Message]:
    """A client that trains as ``answer`` does, but for what the plan says."""

    def train(asked: Message, context: Context) -> Message:
        if asked.metadata.message_type != "train":
            return answer(asked, context)
        fault = plan.get((int(asked.content["config"]["server-round"]), name_of(context)))
        interrupt(fault)
        reply = answer(asked, context)
        if fault == "grows":
            grow(reply.content)
        elif fault in FAULTS:
            FAULTS[fault][0](reply.content)
        return reply

    return train


def interrupting(fit: Callable[..., Any], plan: Plan) -> Callable[..., Any]:
    """A client's ``fit`` that the plan may interrupt, in the midst of a message."""

    def interrupted(self: Any, parameters: Any, config: Any) -> Any:
        interrupt(plan.get((int(config["server-round"]), self.site.name)))
        return fit(self, parameters, config)

    return interrupted


def faulty_app(app: ClientApp, plan: Plan) -> ClientApp:
    """The same as a ClientApp, for a real run."""
    made, train = ClientApp(), misbehaving(app, {place: kind for place, kind in plan.items() if kind not in INTERRUPTS})
    made.query()(app)
    made.train()(train)
    made.evaluate()(app)
    return made


def stage(app: Path, plan: Plan) -> None:
    """Make the staged copy of the app a faulty one."""
    (app / "fedgh_app" / "faults.py").write_text(Path(__file__).read_text())
    with (app / "fedgh_app" / "client_app.py").open("a") as file:
        file.write(f"""
from fedgh_app.faults import faulty_app, interrupting

TaskClient.fit = interrupting(TaskClient.fit, {dict(plan)!r})
app = faulty_app(app, {dict(plan)!r})
""")


def fill_disk(app: Path, server_round: int) -> None:
    """While the staged app writes the checkpoint of a round, no file can grow beyond 100 bytes."""
    with (app / "fedgh_app" / "callbacks" / "checkpoint.py").open("a") as file:
        file.write(f"""
import resource

def full(self, federation, current, write=Checkpoint.after_round):
    if current.round == {server_round}:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    try:
        write(self, federation, current)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

Checkpoint.after_round = full
""")
