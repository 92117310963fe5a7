"""What a faulty client does, for federations in this process and for real runs, whose app `stage` makes faulty."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

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


def name_of(context: Context) -> str:
    """The client's name."""
    return str(context.node_config.get("name", context.node_config.get("partition-id")))


def misbehaving(answer: Callable[[Message, Context], Message], plan: Plan) -> Callable[[Message, Context], Message]:
    """A client that trains as ``answer`` does, but for what the plan says."""

    def train(asked: Message, context: Context) -> Message:
        if asked.metadata.message_type != "train":
            return answer(asked, context)
        fault = plan.get((int(asked.content["config"]["server-round"]), name_of(context)))  # type: ignore[index, arg-type]
        if fault == "raises":
            raise MemoryError("out of memory")
        if fault == "sleeps":
            time.sleep(3600)
        reply = answer(asked, context)
        if fault is not None:
            FAULTS[fault][0](reply.content)
        return reply

    return train


def faulty_app(app: ClientApp, plan: Plan) -> ClientApp:
    """The same as a ClientApp, for a real run."""
    made, train = ClientApp(), misbehaving(app, plan)
    made.query()(app)
    made.train()(train)
    made.evaluate()(app)
    return made


def stage(app: Path, plan: Plan) -> None:
    """Make the staged copy of the app a faulty one."""
    (app / "fedgh_app" / "faults.py").write_text(Path(__file__).read_text())
    with (app / "fedgh_app" / "client_app.py").open("a") as file:
        file.write(f"\nfrom fedgh_app.faults import faulty_app\n\napp = faulty_app(app, {dict(plan)!r})\n")
