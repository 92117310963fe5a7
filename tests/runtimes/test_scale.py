"""What a federation holds grows with the clients that are asked, not with those that are there."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from recording import run

from fedgh_app.assembly.server import Assembly
from fedgh_app.config import instantiation
from fedgh_app.config.compose import compose_config
from fedgh_app.grids.inprocess import InProcessGrid
from fedgh_app.runs.history import Round
from fedgh_app.server.callback import Callback
from fedgh_app.server.federation import Federation
from fedgh_app.server.loop import federate

MODEL_BYTES = 4 * 200_000
SAMPLED = 5


class Client:
    """Answers as a client does, with arrays of the shapes that it was sent; every reply is remembered weakly."""

    def __init__(self) -> None:
        self.replies: list[weakref.ref[ArrayRecord]] = []
        self.asked: Counter[str] = Counter()

    def __call__(self, message: Message, context: Context) -> Message:
        kind = message.metadata.message_type
        self.asked[kind] += 1
        name = str(context.node_config["partition-id"])
        if kind == "query":
            said = {"name": name, "label": name, "predicts": "shoulder,elbow,wrist", "speed": 1.0}
            return Message(
                RecordDict({"client": ConfigRecord({**said, "num-examples": 3, "num-test": 1})}), reply_to=message
            )
        step = np.float32(self.asked[kind])
        received = message.content.array_records["arrays"]
        trained = ArrayRecord({key: Array(array.numpy() + step) for key, array in received.items()})
        self.replies.append(weakref.ref(trained))
        metrics = MetricRecord({"num-examples": 3, "loss": 1.0, "steps": 1, "seconds": 0.1})
        return Message(RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message)


class Watch(Callback):
    """Counts the replies that are still alive after each round."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.alive: list[int] = []

    def after_round(self, federation: Federation, current: Round) -> None:
        gc.collect()
        self.alive.append(sum(reply() is not None for reply in self.client.replies))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tensor of `MODEL_BYTES`: what is beside the models of a round is then small."""

    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(MODEL_BYTES // 4, 1, bias=False)

    monkeypatch.setattr(instantiation, "build_model", lambda *_: Wide())


def federation(clients: int, directory: Path, *overrides: str) -> tuple[Federation, Client, Watch, int]:
    """Three rounds of `SAMPLED` of so many clients; and the peak of traced memory in them, bytes."""
    directory.mkdir()
    config = compose_config(
        [
            "rounds=3",
            "tracking=none",
            "runtime=inprocess",
            "evaluate.clients_every=0",
            f"selection.fraction={SAMPLED / clients}",
            *overrides,
        ]
    )
    client = Client()
    watch = Watch(client)
    hooks: list[Callback] = [watch]
    app: Any = client
    grid = InProcessGrid(app, [{"partition-id": number} for number in range(clients)], {"overrides": ""})
    gc.collect()
    tracemalloc.start()
    try:
        done = Assembly(config).federation(directory)
        federate(done, grid, hooks)
        return done, client, watch, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("strategy", ["fedgh", "fedmedian"])
def test_memory_grows_with_the_clients_asked_not_with_all(
    model: None, home: Path, tmp_path: Path, strategy: str
) -> None:
    federation(30, tmp_path / "warm", f"strategy={strategy}", "rounds=1")  # what is built once counts for neither
    peaks = {}
    for clients in (30, 300):
        done, client, watch, peaks[clients] = federation(clients, tmp_path / f"{clients}", f"strategy={strategy}")
        assert client.asked == {"query": clients, "train": 3 * SAMPLED}
        assert watch.alive == [0, 0, 0, 0]
        assert len(done.clients) == clients
    # The model, the next one, the replies of a round; all 270 that are never asked cost less than a model.
    assert (SAMPLED + 2) * MODEL_BYTES < peaks[30] < (SAMPLED + 6) * MODEL_BYTES
    assert peaks[300] - peaks[30] < MODEL_BYTES


def test_memory_does_grow_with_the_clients_asked(model: None, home: Path, tmp_path: Path) -> None:
    """The measure sees what it is to see."""
    federation(30, tmp_path / "warm", "rounds=1")
    few, many = (
        federation(30, tmp_path / f"{asked}", f"selection.fraction={asked / 30}")[3] for asked in (SAMPLED, 3 * SAMPLED)
    )
    assert many - few > 1.8 * SAMPLED * MODEL_BYTES


def test_a_share_of_the_clients_evaluates_and_another_one_each_time(toy: list[str], tmp_path: Path) -> None:
    overrides = [
        *toy,
        "selection.fraction=0.1",
        "partition=iid",
        "evaluate.clients_fraction=0.25",
        "evaluate.central_every=0",
        "rounds=3",
    ]
    done, _ = run(overrides, tmp_path / "run", count=8)
    asked = [frozenset(this.evaluate.clients.by_client) for this in done.history[1:]]
    assert [len(names) for names in asked] == [2, 2, 2] and len(set(asked)) > 1
    again, _ = run([*overrides, "rounds=1"], tmp_path / "again", count=8)
    assert again.history[1].evaluate == done.history[1].evaluate
