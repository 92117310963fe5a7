"""Whatever a client sends, looking at it ends in one line or in a reply that does no harm; how far an update is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgh_app.grids.reply_checks import Expected, examine, squared_distance
from fedgh_app.pose.evaluation.tally import BOUNDS

SENT = {
    "conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "norm.running_var": np.ones(2, np.float32),
    "norm.num_batches_tracked": np.array(3),
    "half": np.ones(3, np.float16),
}
METRICS = {"num-examples": 5, "loss": 0.5, "steps": 2, "seconds": 0.1}
EXPECTED = Expected(frozenset(METRICS), 10)

NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans())
VALUES = st.one_of(NUMBERS, st.lists(NUMBERS, max_size=3))
NAMES = st.one_of(st.sampled_from([*SENT, *METRICS, "arrays", "metrics"]), st.text(max_size=8))
DTYPES = st.sampled_from(["float32", "float64", "float16", "int64", ">f4", "complex64", "<U3", "object", "V0", "bogus"])


@st.composite
def arrays(draw: st.DrawFn, array: Array) -> Array:
    """An array whose shape, type, kind or bytes were tampered with, or another one."""
    how = draw(st.sampled_from(["shape", "dtype", "stype", "cut", "bytes", "header", "values", "other"]))
    data = bytearray(array.data)
    if how == "values" and array.dtype in ("float32", "float16") and min(array.shape, default=0) >= 0:
        size = math.prod(array.shape)
        numbers = draw(st.lists(st.floats(width=16), min_size=size, max_size=size))
        return Array(np.array(numbers, array.dtype).reshape(array.shape))
    if how == "other":
        return Array(np.zeros(draw(st.lists(st.integers(0, 3), max_size=3)), draw(st.sampled_from(["f2", "f4", "i8"]))))
    if how == "cut":
        data = data[: draw(st.integers(0, len(data)))]
    elif how in ("bytes", "header"):
        last = len(data) - 1 if how == "bytes" else 20
        for place in draw(st.lists(st.integers(0, last), min_size=1, max_size=4)):
            data[place] = draw(st.integers(0, 255))
    return Array(
        draw(DTYPES) if how == "dtype" else array.dtype,
        tuple(draw(st.lists(st.integers(-2, 9), max_size=4))) if how == "shape" else array.shape,
        draw(st.text(max_size=4)) if how == "stype" else array.stype,
        bytes(data),
    )


@st.composite
def replies(draw: st.DrawFn) -> RecordDict:
    """A good reply to training, with up to three things about it changed."""
    trained: dict[str, Array] = {key: Array(np.asarray(value + value.dtype.type(1))) for key, value in SENT.items()}
    metrics: dict[str, Any] = dict(METRICS)
    records: dict[str, Any] = {}
    for _ in range(draw(st.integers(0, 3))):
        what = draw(st.sampled_from(["array", "drop array", "add array", "metric", "drop metric", "record"]))
        if what == "array" and trained:
            key = draw(st.sampled_from(sorted(trained)))
            trained[key] = draw(arrays(trained[key]))
        elif what == "drop array" and trained:
            del trained[draw(st.sampled_from(sorted(trained)))]
        elif what == "add array":
            trained[draw(NAMES)] = Array(np.zeros(2, np.float32))
        elif what == "metric":
            metrics[draw(NAMES)] = draw(VALUES)
        elif what == "drop metric" and metrics:
            del metrics[draw(st.sampled_from(sorted(metrics)))]
        elif what == "record":
            records[draw(NAMES)] = draw(st.sampled_from([ArrayRecord(), MetricRecord(), ConfigRecord()]))
    numbers = MetricRecord()
    numbers._data.update(metrics)  # what the record's own checks would keep out
    return RecordDict({"arrays": ArrayRecord(trained), "metrics": numbers, **records})


def asked(kind: str) -> Message:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID
    model = ArrayRecord({key: Array(value) for key, value in SENT.items()})
    return Message(RecordDict({"arrays": model, "config": ConfigRecord()}), 1, kind)


@settings(max_examples=400, deadline=None)
@given(replies(), st.sampled_from(["train", "evaluate", "query"]))
def test_no_reply_raises_and_what_passes_is_harmless(content: RecordDict, kind: str) -> None:
    question = asked(kind)
    verdict = examine(question, Message(content, reply_to=question), EXPECTED)
    if verdict.fault is not None:
        assert verdict.fault and verdict.fault.isprintable() and len(verdict.fault) < 500  # one line, that is
        return
    assert kind != "query"
    (numbers,) = content.metric_records.values()
    assert numbers.keys() == METRICS.keys()
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in numbers.values())
    assert 0 < numbers["num-examples"] <= 10
    if kind == "train":
        (trained,) = content.array_records.values()
        assert trained.keys() == SENT.keys()
        for key, value in SENT.items():
            found = trained[key].numpy()
            assert (found.shape, found.dtype) == (value.shape, value.dtype)
            assert np.isfinite(found).all()
        assert verdict.norms is not None and verdict.norms.parameters >= 0


def test_a_good_reply_is_good() -> None:
    question = asked("train")
    content = RecordDict(
        {
            "arrays": ArrayRecord({key: Array(np.asarray(value + value.dtype.type(1))) for key, value in SENT.items()}),
            "metrics": MetricRecord(dict(METRICS)),
        }
    )
    verdict = examine(question, Message(content, reply_to=question), EXPECTED)
    assert verdict.fault is None
    assert verdict.norms is not None
    assert verdict.norms.parameters == math.sqrt(6 + 3)  # the running variance apart, the count of batches not at all
    assert verdict.norms.statistics == math.sqrt(2)


@pytest.mark.parametrize("name", ["", "a\nb", "[/red]", "<script>", "$\\frac{$", "\x1b[2J", "a" * 101])
def test_a_name_that_would_not_survive_a_table_is_refused(name: str) -> None:
    said = {"name": name, "label": "a", "predicts": "wrist", "num-examples": 1, "num-test": 1, "speed": 1.0}
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID
    asked = Message(RecordDict(), 1, MessageType.QUERY)

    def fault(**changes: str) -> str | None:
        content = RecordDict({"client": ConfigRecord({**said, **changes})})
        return examine(asked, Message(content, reply_to=asked)).fault

    assert str(fault()).startswith("name is ")
    assert fault(name="Klinik Süd, Haus 3 (arm/left)") is None


COUNTS = {"visible/wrist": 4, "correct/wrist": 2, "area/wrist": 1.5, "heatmap_visible/wrist": 4}
COUNTED = {"num-examples": 5, "loss": 0.5, "loss-terms": 4, **COUNTS, "heatmap_correct/wrist": 4}
ODD_COUNTS = {
    "more correct than visible": ({"correct/wrist": 5000}, "correct of wrist is 5000; expected 0 to 4"),
    "negative": ({"correct/wrist": -1}, "correct of wrist is -1; expected 0 to 4"),
    "more visible than examples": ({"visible/wrist": 6}, "visible of wrist is 6; expected 0 to 5"),
    "area": ({"area/wrist": 4.5}, "area of wrist is 4.5; expected 0 to 4"),
    "heatmaps": ({"heatmap_correct/wrist": 5}, "heatmap_correct of wrist is 5; expected 0 to 4"),
    "loss": ({"loss-terms": -1}, "loss-terms is -1"),
}


@pytest.mark.parametrize("odd", ODD_COUNTS)
def test_counts_that_no_evaluation_gives_are_a_fault(odd: str) -> None:
    changed, reason = ODD_COUNTS[odd]
    message = asked("evaluate")
    for metrics, expected in ((COUNTED, None), ({**COUNTED, **changed}, reason)):
        reply = Message(RecordDict({"metrics": MetricRecord(dict(metrics))}), reply_to=message)
        fault = examine(message, reply, Expected(bounds=BOUNDS)).fault
        assert fault is None if expected is None else str(fault).startswith(expected)


ODD_STATISTICS = {
    "variance": (
        "norm.running_var",
        np.array([1, -10], np.float32),
        "array norm.running_var holds a negative variance",
    ),
    "less": ("norm.num_batches_tracked", np.array(2), "array norm.num_batches_tracked counts from 3 to 2"),
    "overflow": ("norm.num_batches_tracked", np.array(2**63 - 1), "array norm.num_batches_tracked counts from 3 to 9"),
}


@pytest.mark.parametrize("odd", ODD_STATISTICS)
def test_statistics_that_no_training_gives_are_a_fault(odd: str) -> None:
    key, value, reason = ODD_STATISTICS[odd]
    message = asked("train")
    arrays = ArrayRecord({name: Array(sent) for name, sent in (SENT | {key: value}).items()})
    reply = Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(dict(METRICS))}), reply_to=message)
    assert str(examine(message, reply).fault).startswith(reason)


@pytest.mark.parametrize(
    ("key", "value"), [("num-examples", -5), ("num-test", -1), ("speed", 0.0), ("speed", math.nan), ("speed", math.inf)]
)
def test_a_description_out_of_range_is_a_fault(key: str, value: float) -> None:
    said = {"name": "a", "label": "b", "predicts": "c", "num-examples": 1, "num-test": 0, "speed": 1.0}
    message = asked("query")
    for change, good in ({}, True), ({key: value}, False):
        reply = Message(RecordDict({"client": ConfigRecord(said | change)}), reply_to=message)
        fault = examine(message, reply).fault
        assert fault is None if good else str(fault).startswith(f"{key} is {value}; expected")


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("<class 'fedgh_app.errors.RunFailed'>:<'its process was told to end'>", "its process was told to end"),
        ("<class 'MemoryError'>:<'out of memory'>", "MemoryError: out of memory"),
        ("<class 'flwr.ClientAppException'>:<'\nException ClientAppException occurred. Message: no'>", "no"),
        ("<class 'ray.x.RayTaskError(E)'>:<'traceback\n  File x\nValueError: no'>", "ValueError: no'>"),
        ("", "error 2"),
        ("a\tb" + 400 * "c", "a b" + 196 * "c" + "…"),
    ],
)
def test_an_error_is_one_short_line(reason: str, line: str) -> None:
    question = asked("train")
    assert examine(question, Message(Error(2, reason), reply_to=question)).fault == line


def test_a_norm_is_that_of_the_difference_in_every_floating_type() -> None:
    draw = np.random.default_rng(0)
    for dtype in (np.float16, np.float32, np.float64):
        start, end = (draw.standard_normal(200_001).astype(dtype) for _ in range(2))
        expected = float(np.sum((end.astype(np.float64) - start.astype(np.float64)) ** 2))
        assert squared_distance(start, end) == pytest.approx(expected, rel=1e-3 if dtype == np.float16 else 1e-5)
    far = np.full(3, 3e38, np.float32)
    assert squared_distance(-far, far) == pytest.approx(3 * (6e38) ** 2)
    assert squared_distance(np.empty(0, np.float32), np.empty(0, np.float32)) == 0.0
