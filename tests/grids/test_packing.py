"""A model as one array on the wire: the same bits on both sides, and no harm from a layout that is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st
from recording import Recording

from fedgh_app.assembly.server import Assembly
from fedgh_app.client_app import app as client_app
from fedgh_app.config.compose import compose_config, join_overrides
from fedgh_app.grids.packing import LAYOUT, PackingGrid, pack, packing, unpack
from fedgh_app.server.loop import federate


def model() -> ArrayRecord:
    arrays = {
        "z.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a.bias": np.array([np.nan, -0.0], dtype=np.float64),
        "count": np.array(7, dtype=np.int64),
        "empty": np.zeros((0, 4), dtype=np.float16),
    }
    odd = Array("float32", (5, 5), "a kind of its own", b"not what it declares")
    return ArrayRecord({**{key: Array(value) for key, value in arrays.items()}, "odd": odd})


def test_what_was_packed_comes_out_bit_for_bit_and_in_order() -> None:
    content = RecordDict(
        {"arrays": model(), "config": ConfigRecord({"a": [1, 2]}), "metrics": MetricRecord({"b": 0.5})}
    )
    packed = pack(content)
    assert [len(record) for record in packed.array_records.values()] == [1]
    found = unpack(packed)
    assert found == content
    assert list(found["arrays"]) == list(content["arrays"])
    assert unpack(content) == content  # what nobody packed stays as it is


def test_a_model_for_many_is_packed_once() -> None:
    """Its bytes would otherwise stand in the server's memory once for each client that is asked."""
    seen: list[bytes] = []

    class Looking(Recording):
        def push_messages(self, messages: Any) -> list[str]:
            messages = list(messages)
            seen.extend(message.content["arrays"][""].data for message in messages)
            return super().push_messages(messages)

    shared = model()
    grid = PackingGrid(Looking(client_app, [{}] * 5, {}))
    contents = [RecordDict({"arrays": shared, "config": ConfigRecord({"draw": node})}) for node in range(1, 6)]
    messages = [Message(content, node, "train") for node, content in enumerate(contents, start=1)]
    grid.push_messages(messages)
    assert len(seen) == 5 and len({id(data) for data in seen}) == 1
    assert all(message.content is content for message, content in zip(messages, contents, strict=True))


def test_who_only_waits_for_replies_gets_them_unpacked() -> None:
    """As Flower's own strategies ask, by one call."""
    passed: list[list[str]] = []
    echo = ClientApp(mods=[packing])

    @echo.train()
    def train(asked: Message, context: Context) -> Message:
        return Message(asked.content, reply_to=asked)

    class Looking(Recording):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
            messages = list(messages)
            passed.extend(list(message.content["arrays"]) for message in messages)
            return super().send_and_receive(messages, timeout=timeout)

    content = RecordDict({"arrays": model()})
    asked = [Message(content, node, "train") for node in (1, 2)]
    replies = list(PackingGrid(Looking(echo, [{}] * 2, {})).send_and_receive(asked))
    assert passed == [[""], [""]]
    assert [reply.content for reply in replies] == [content, content]
    assert all(message.content is content for message in asked)


@pytest.mark.parametrize(
    "layout",
    [
        "no JSON",
        "{}",
        "7",
        '[["a", "float32"]]',
        json.dumps([["a", "float32", [1], "numpy.ndarray", 10**9]]),
        json.dumps([["a", "float32", [1], "numpy.ndarray", -4], ["b", "float32", [1], "numpy.ndarray", 4]]),
        json.dumps([["a", "float32", [1], "numpy.ndarray", 2]]),
        json.dumps([["a", "float32", [1], "numpy.ndarray", 2], ["a", "float32", [1], "numpy.ndarray", 2]]),
        json.dumps([["a", "float32", ["x"], "numpy.ndarray", 4]]),
    ],
)
def test_a_layout_that_is_none_is_an_error_of_its_own(layout: str) -> None:
    packed = RecordDict({"arrays": ArrayRecord({"": Array("uint8", (4,), "fedgh.packed", b"abcd")})})
    packed[LAYOUT + "arrays"] = ConfigRecord({"arrays": layout})
    with pytest.raises(ValueError, match=r"the layout of 'arrays'"):
        unpack(packed)


@given(st.text(), st.binary(max_size=64))
def test_no_layout_raises_anything_else(layout: str, data: bytes) -> None:
    packed = RecordDict({"arrays": ArrayRecord({"": Array("uint8", (len(data),), "fedgh.packed", data)})})
    packed[LAYOUT + "arrays"] = ConfigRecord({"arrays": layout})
    try:
        unpack(packed)
    except ValueError as error:
        assert str(error).startswith("the layout of")


def federation(overrides: list[str], directory: Path, *, packed: bool) -> tuple[Any, Recording]:
    config = compose_config(overrides)
    Assembly(config).data.deal(4)
    directory.mkdir()
    nodes = [{"partition-id": number, "num-partitions": 4} for number in range(4)]
    grid = Recording(client_app, nodes, {"overrides": join_overrides(overrides)})
    made = Assembly(config).federation(directory)
    federate(made, PackingGrid(grid) if packed else grid, [])
    return made, grid


def test_a_federation_is_the_same_when_its_messages_are_packed(toy: list[str], tmp_path: Path) -> None:
    overrides = [*toy, "strategy=fedgh", "sharing=fedbn", "evaluate.clients_every=1"]
    plain, _ = federation(overrides, tmp_path / "plain", packed=False)
    packed, _ = federation(overrides, tmp_path / "packed", packed=True)
    assert {key: array.data for key, array in plain.arrays.items()} == {
        key: array.data for key, array in packed.arrays.items()
    }
    assert packed.history[-1].evaluate == plain.history[-1].evaluate
    assert packed.history[-1].bytes == plain.history[-1].bytes  # counted as what they carry
    assert not packed.history[-1].rejected


class Garbling(Recording):
    """Breaks the layout of the first client's trained model."""

    def pull_messages(self, message_ids: Any) -> Any:
        found = super().pull_messages(message_ids)
        for reply in found:
            if reply.metadata.src_node_id == 1 and LAYOUT + "arrays" in reply.content:
                reply.content[LAYOUT + "arrays"] = ConfigRecord({"arrays": "[]"})
        return found


def test_a_reply_whose_layout_is_broken_is_rejected_and_the_round_goes_on(toy: list[str], tmp_path: Path) -> None:
    config = compose_config([*toy, "rounds=1"])
    Assembly(config).data.deal(4)
    nodes = [{"partition-id": number, "num-partitions": 4} for number in range(4)]
    grid = Garbling(client_app, nodes, {"overrides": join_overrides([*toy, "rounds=1"])})
    run = Assembly(config).federation(tmp_path)
    federate(run, PackingGrid(grid), [])
    (rejected,) = run.history[1].rejected
    assert rejected.client == "0"
    assert "is missing" in rejected.reason
