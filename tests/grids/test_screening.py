from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedgh_app.errors import RunFailed
from fedgh_app.grids.inprocess import InProcessGrid
from fedgh_app.grids.reply_checks import Expected
from fedgh_app.grids.screening import ScreeningGrid

SENT = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3)}
GOOD = {"num-examples": 5, "loss": 0.5}


def grid_of(*answers: Callable[[], RecordDict]) -> ScreeningGrid:
    """A grid whose node i, called `client i`, trains by ``answers[i]``."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(answers[int(context.node_config["partition-id"])](), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return train(message, context)

    nodes = [{"partition-id": i} for i in range(len(answers))]
    grid = ScreeningGrid(InProcessGrid(app, nodes, {}))
    grid.client_names = {node: f"client {place}" for place, node in enumerate(grid.get_node_ids())}
    grid.round = 3
    return grid


def content(arrays: dict[str, np.ndarray] | None = None, metrics: dict[str, object] | None = None) -> RecordDict:
    arrays = SENT if arrays is None else arrays
    record = ArrayRecord({key: Array(value) for key, value in arrays.items()})
    return RecordDict({"arrays": record, "metrics": MetricRecord(dict(GOOD if metrics is None else metrics))})


def ask(grid: ScreeningGrid, kind: str = "train") -> list[Message]:
    model = ArrayRecord({key: Array(value) for key, value in SENT.items()})
    messages = [Message(RecordDict({"arrays": model, "config": ConfigRecord()}), n, kind) for n in grid.get_node_ids()]
    return list(grid.send_and_receive(messages, timeout=5))


def lying() -> RecordDict:
    made = content()
    made["arrays"]["w"] = Array("float32", (2, 3), "numpy.ndarray", Array(np.zeros(7, np.float32)).data)
    return made


def truncated() -> RecordDict:
    made = content()
    array = made["arrays"]["w"]
    made["arrays"]["w"] = Array(array.dtype, array.shape, array.stype, array.data[:-3])
    return made


def explode() -> RecordDict:
    raise ValueError("out of memory")


BAD = {
    "raises": (explode, "out of memory"),
    "missing key": (lambda: content({"n": SENT["n"]}), "array w is missing"),
    "extra key": (lambda: content({**SENT, "x": SENT["n"]}), "array x was never sent"),
    "wrong shape": (lambda: content({**SENT, "w": np.zeros((3, 2), np.float32)}), "shape (3, 2); expected (2, 3)"),
    "wrong dtype": (lambda: content({**SENT, "w": np.zeros((2, 3))}), "dtype float64; expected float32"),
    "nan": (lambda: content({**SENT, "w": np.full((2, 3), np.nan, np.float32)}), "NaN or infinity"),
    "infinity": (lambda: content({**SENT, "w": np.full((2, 3), np.inf, np.float32)}), "NaN or infinity"),
    "other bytes": (lying, "array w holds float32 of shape (7,)"),
    "truncated": (truncated, "array w cannot be read"),
    "zero examples": (lambda: content(metrics={"num-examples": 0}), "num-examples is 0"),
    "negative examples": (lambda: content(metrics={"num-examples": -3}), "num-examples is -3"),
    "no examples": (lambda: content(metrics={"loss": 1.0}), "num-examples is None"),
    "nan metric": (lambda: content(metrics={**GOOD, "loss": float("nan")}), "metric loss is nan"),
    "no metrics": (lambda: RecordDict({"arrays": content()["arrays"]}), "0 MetricRecords"),
    "no arrays": (lambda: RecordDict({"metrics": content()["metrics"]}), "0 ArrayRecords"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_reply_is_set_aside_with_name_round_and_reason(kind: str) -> None:
    make, reason = BAD[kind]
    grid = grid_of(content, make, content)
    replies = ask(grid)
    assert [reply.metadata.src_node_id for reply in replies] == [1, 3]
    (rejected,) = grid.rejected
    assert (rejected.round, rejected.client) == (3, "client 1")
    assert reason in rejected.reason
    assert "\n" not in rejected.reason


def expected(client: str, asked: Message) -> Expected:
    return Expected(frozenset({"num-examples", "loss"}), 10)


UNFIT = {
    "missing": ({"num-examples": 5}, "metric loss is missing"),
    "extra": ({**GOOD, "speed": 1.0}, "metric speed was not asked for"),
    "list": ({**GOOD, "loss": [0.5, 0.5]}, "metric loss is a list"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_metrics_that_would_stop_a_strategy_are_a_bad_reply(kind: str) -> None:
    metrics, reason = UNFIT[kind]
    grid = grid_of(content, lambda: content(metrics=dict(metrics)))
    grid.expected = expected
    assert len(ask(grid)) == 1
    assert grid.rejected[0].reason.startswith(reason)


@pytest.mark.parametrize(
    ("distance", "reason"), [(None, "metric cosine-distance is missing"), (-0.5, "metric cosine-distance is -0.5")]
)
def test_what_the_strategy_asked_for_is_checked(distance: float | None, reason: str) -> None:
    measured = {} if distance is None else {"cosine-distance": distance}
    grid = grid_of(lambda: content(metrics={**GOOD, **measured}))
    grid.expected = expected
    model = ArrayRecord({key: Array(value) for key, value in SENT.items()})
    config = ConfigRecord({"report": ["cosine-distance"]})
    asked = Message(RecordDict({"arrays": model, "config": config}), 1, "train")
    assert list(grid.send_and_receive([asked], timeout=5)) == []
    assert grid.rejected[0].reason.startswith(reason)


@pytest.mark.parametrize("missing", ["name", "label", "predicts", "num-examples", "num-test", "speed"])
def test_a_client_that_does_not_describe_itself_is_rejected(missing: str) -> None:
    app = ClientApp()
    said = {"name": "a", "label": "b", "predicts": "c", "num-examples": 1, "num-test": 1, "speed": 1.0}

    @app.query()
    def query(message: Message, context: Context) -> Message:
        record = ConfigRecord({key: value for key, value in said.items() if key != missing})
        return Message(RecordDict({"client": record}), reply_to=message)

    grid = ScreeningGrid(InProcessGrid(app, [{"partition-id": 0}], {}))
    assert list(grid.send_and_receive([Message(RecordDict(), 1, "query")], timeout=5)) == []
    assert grid.rejected[0].reason.startswith(f"{missing} is None")


def test_waiting_ends_when_somebody_asks_the_run_to_stop(tmp_path: Path) -> None:
    class Silent(InProcessGrid):
        def pull_messages(self, message_ids):
            return []

    grid = ScreeningGrid(Silent(ClientApp(), [{"partition-id": 0}], {}), stop_file=tmp_path / "stop")
    (tmp_path / "stop").touch()
    with pytest.raises(RunFailed, match="stopped"):
        grid.send_and_receive([Message(RecordDict({"arrays": ArrayRecord()}), 1, "train")])


def test_huge_finite_values_are_no_fault() -> None:
    grid = grid_of(lambda: content({**SENT, "w": np.full((2, 3), 3e38, np.float32)}))
    assert len(ask(grid)) == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_infinity_is_found_in_every_floating_type(dtype: type) -> None:
    sent = {"w": np.ones(4, dtype)}
    answer = {"w": np.array([1, 2, -np.inf, 3], dtype)}
    grid = grid_of(lambda: content(answer))
    model = ArrayRecord({"w": Array(sent["w"])})
    assert list(grid.send_and_receive([Message(RecordDict({"arrays": model}), 1, "train")], timeout=5)) == []
    assert "NaN or infinity" in grid.rejected[0].reason


def test_an_evaluation_needs_no_arrays() -> None:
    assert len(ask(grid_of(lambda: RecordDict({"metrics": content()["metrics"]})), "evaluate")) == 1


def test_bytes_are_counted_both_ways() -> None:
    grid = grid_of(content, content)
    ask(grid)
    size = sum(len(Array(value).data) for value in SENT.values())
    assert (grid.traffic.down, grid.traffic.up) == (2 * size, 2 * size)


def test_a_client_that_never_answers_is_told_after_the_timeout() -> None:
    class Silent(InProcessGrid):
        def pull_messages(self, message_ids):
            return []

    grid = ScreeningGrid(Silent(ClientApp(), [{"partition-id": 0}], {}), {1: "lab"})
    message = Message(RecordDict({"arrays": ArrayRecord()}), 1, "train")
    assert list(grid.send_and_receive([message], timeout=0.1)) == []
    assert (grid.rejected[0].client, grid.rejected[0].reason) == ("lab", "no reply within the time it had")


def test_no_more_messages_are_under_way_at_once_than_may_be() -> None:
    under_way, most = 0, []

    class Counting(InProcessGrid):
        def push_messages(self, messages):
            nonlocal under_way
            pushed = super().push_messages(messages)
            under_way += len(pushed)
            most.append(under_way)
            return pushed

        def pull_messages(self, message_ids):
            nonlocal under_way
            pulled = super().pull_messages(message_ids)
            under_way -= len(pulled)
            return pulled

    grid = grid_of(*[content] * 7)
    counting = Counting(grid.inner.client_app, [{"partition-id": place} for place in range(7)], {})
    grid.inner, grid.at_once = counting, 2
    assert [reply.metadata.src_node_id for reply in ask(grid)] == [1, 2, 3, 4, 5, 6, 7]
    assert max(most) == 2 and grid.rejected == []
    grid.at_once = None
    assert len(ask(grid)) == 7 and max(most) == 7


def test_who_was_not_asked_before_the_time_was_over_is_told_and_owes_nothing() -> None:
    class Silent(InProcessGrid):
        def pull_messages(self, message_ids):
            return []

    grid = ScreeningGrid(Silent(ClientApp(), [{"partition-id": 0}] * 3, {}), {1: "c", 2: "a", 3: "b"}, at_once=1)
    messages = [Message(RecordDict({"arrays": ArrayRecord()}), node, "train") for node in (1, 2, 3)]
    assert list(grid.send_and_receive(messages, timeout=0.1)) == []
    assert [(item.client, item.reason) for item in grid.rejected] == [
        (name, "no reply within the time it had") for name in ("a", "b", "c")
    ]
    assert grid.owing == {"c"}
