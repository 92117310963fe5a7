import numpy as np
import pytest
from federation import numpy_state, record, reply
from flwr.app import ConfigRecord

from strategies import FedAvg
from strategies.rebase import rebase


def model(weight, mean, batches, dtype=np.float32):
    return {
        "w": np.array(weight, dtype),
        "bn.running_mean": np.array(mean, dtype),
        "bn.num_batches_tracked": np.array(batches),
    }


START, BASE = model([1, 2], [0], 3), model([10, 20], [5], 9)
TRAINED = model([2, 0], [7], 4)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_by_hand(dtype):
    # Δ = (2, 0) - (1, 2) = (1, -2); base + 1/2 Δ = (10.5, 19). Statistics and counters are the client's.
    start, base, trained = (model(s["w"], s["bn.running_mean"], 4, dtype) for s in (START, BASE, TRAINED))
    moved = numpy_state(rebase(reply(1, trained), record(start), record(base), 0.5).content["arrays"])
    assert moved["w"].tolist() == [10.5, 19.0]
    assert moved["bn.running_mean"].tolist() == [7.0]
    assert moved["bn.num_batches_tracked"] == 4
    assert all(moved[name].dtype == trained[name].dtype for name in trained)


def test_the_rest_of_the_message_stays():
    sent = reply(17, TRAINED, {"num-examples": 5, "loss": 0.25})
    sent.content["notes"] = ConfigRecord({"camera": "left"})
    moved = rebase(sent, record(START), record(BASE), 0.5)
    assert vars(moved.metadata) == vars(sent.metadata)
    assert list(moved.content) == list(sent.content)
    assert moved.content["metrics"] == sent.content["metrics"]
    assert moved.content["notes"] == sent.content["notes"]
    assert numpy_state(sent.content["arrays"])["w"].tolist() == [2.0, 0.0]  # never modified


def test_a_fresh_update_is_handed_on_untouched():
    start, sent = record(START), reply(1, TRAINED)
    assert rebase(sent, start, start) is sent
    assert numpy_state(rebase(sent, start, start, 0.5).content["arrays"])["w"].tolist() == [1.5, 1.0]


def test_any_rule_takes_updates_of_different_ages():
    # Client 1 started from START, client 2 from BASE and moved by (2, 4): base + 1/2 (1/2 (1, -2) + (2, 4)).
    stale = rebase(reply(1, TRAINED), record(START), record(BASE), 0.5)
    fresh = reply(2, model([12, 24], [5], 10))
    arrays, _ = FedAvg().aggregate(1, record(BASE), [stale, fresh])
    assert numpy_state(arrays)["w"].tolist() == [11.25, 21.5]
    assert numpy_state(arrays)["bn.num_batches_tracked"] == 10


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"w": np.zeros(2, np.float32)}, r"node 1: tensors \['bn.num_batches_tracked', 'bn.running_mean'\]"),
        (model([1, 2, 3], [0], 0), r"node 1, tensor 'w': float32 \(2,\), but .* float32 \(3,\)"),
        (model([1, 2], [0], 0, np.float64), "node 1, tensor 'w': .* float64"),
    ],
)
def test_models_of_different_tensors_are_refused(base, message):
    with pytest.raises(ValueError, match=message):
        rebase(reply(1, TRAINED), record(START), record(base))
