"""Life with Flower: messages, failures, sampling, waiting, plain start."""

import numpy as np
import pytest
from federation import FakeGrid, failure, numpy_state, record, reply, started
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from strategies import FedAvg, FedAW, FedCDW, FedGH

ALL = (FedAvg, FedAW, FedGH, FedCDW)
ZERO = {"w": np.zeros(2)}
RIGHT = {"w": np.array([1.0, 0.0])}


def test_aggregate_without_configure_is_a_clear_error():
    with pytest.raises(RuntimeError, match="configure_train first"):
        FedGH().aggregate_train(1, [reply(1, ZERO)])


@pytest.mark.parametrize("strategy", ALL)
def test_aggregate_takes_the_model_that_it_is_given(strategy):
    # An asynchronous server aggregates against a model of its own, whatever was sent last.
    replies = [reply(1, RIGHT, 1), reply(2, {"w": np.array([-1.0, 1.0])}, 3)]
    told = started(strategy(), ZERO, [1, 2])
    expected, _ = told.aggregate_train(4, replies)
    asked = started(strategy(), RIGHT, [1, 2])
    arrays, _ = asked.aggregate(4, record(ZERO), replies)
    assert arrays["w"].data == expected["w"].data
    assert asked.diagnostics == told.diagnostics
    assert strategy().aggregate(4, record(ZERO), [failure(1)]) == (None, None)


def test_failed_replies_are_skipped():
    rule = started(FedAvg(), ZERO, [1, 2])
    arrays, _ = rule.aggregate_train(1, iter([failure(1), reply(2, RIGHT)]))
    assert numpy_state(arrays)["w"].tolist() == [1.0, 0.0]
    assert rule.aggregate_train(1, [failure(1), failure(2)]) == (None, None)
    assert rule.aggregate_train(1, []) == (None, None)


def test_differing_metrics_name_the_client():
    rule = started(FedAvg(), ZERO, [1, 2])
    replies = [reply(1, RIGHT), reply(2, RIGHT, {"num-examples": 1, "loss": 0.5})]
    with pytest.raises(ValueError, match=r"client '2': metrics \['loss'\]"):
        rule.aggregate_train(1, replies)


def test_updates_are_taken_against_what_was_sent_not_what_the_caller_made_of_it():
    arrays = record(RIGHT)
    rule = FedAvg(server_learning_rate=0.5)
    rule.configure_train(1, arrays, ConfigRecord(), FakeGrid([1, 2]))
    arrays.to_torch_state_dict(keep_input=False)
    new, _ = rule.aggregate_train(1, [reply(1, ZERO)])
    assert numpy_state(new)["w"].tolist() == [0.5, 0.0]


def sampled(rule, grid, server_round, purpose):
    messages = getattr(rule, f"configure_{purpose}")(server_round, record(ZERO), ConfigRecord(), grid)
    return [rule.client_names[message.metadata.dst_node_id] for message in messages]


def test_sampling_is_by_name_seed_round_and_purpose():
    names = [f"site-{n}" for n in range(10)]
    draws = {}
    for seed in (0, 1):
        for run in range(2):
            ids = np.random.default_rng(10 * seed + run).permutation(1000)[:10].tolist()
            rule = FedAvg(fraction_train=0.4, fraction_evaluate=0.4, seed=seed)
            rule.client_names = dict(zip(ids, names, strict=True))
            grid = FakeGrid(ids)
            draws[seed, run] = [sampled(rule, grid, r, p) for r in (1, 2, 3) for p in ("train", "evaluate")]
    assert draws[0, 0] == draws[0, 1]
    assert draws[0, 0] != draws[1, 0]
    assert len({tuple(draw) for draw in draws[0, 0]}) > 1
    assert all(len(draw) == 4 and draw == sorted(draw) for draw in draws[0, 0])


@pytest.mark.parametrize("purpose", ["train", "evaluate"])
def test_waiting_for_nodes_has_an_end(purpose):
    rule = FedAvg(min_available_nodes=3, node_timeout=0.05)
    with pytest.raises(TimeoutError, match="2 of 3 nodes"):
        getattr(rule, f"configure_{purpose}")(1, record(ZERO), ConfigRecord(), FakeGrid([1, 2]))


def test_nodes_that_come_late_are_waited_for(monkeypatch):
    grid = FakeGrid([1])
    monkeypatch.setattr("strategies.fedavg.time.sleep", lambda seconds: grid.node_ids.append(2))
    rule = FedAvg(min_available_nodes=2)
    assert len(list(rule.configure_train(1, record(ZERO), ConfigRecord(), grid))) == 2


def test_by_default_every_connected_node_takes_part():
    for nodes in ([7], [1, 2, 3]):
        for purpose in ("train", "evaluate"):
            configure = getattr(FedAvg(), f"configure_{purpose}")
            messages = configure(1, record(ZERO), ConfigRecord(), FakeGrid(nodes))
            assert [message.metadata.dst_node_id for message in messages] == nodes


@pytest.mark.parametrize("strategy", ALL)
def test_plain_start(strategy):
    # Each node pulls a coordinate of its own half the way to 1, so the model of two nears (1, 1).
    def answer(message: Message) -> Message:
        node = message.metadata.dst_node_id
        w = message.content["arrays"]["w"].numpy().copy()
        loss = float(np.abs(1 - w).sum())
        if message.metadata.message_type == "evaluate":
            metrics = MetricRecord({"num-examples": 5, "loss": loss})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)
        w[node - 1] += 0.5 * (1 - w[node - 1])
        metrics = MetricRecord({"num-examples": 5, "loss": loss})
        if "cosine-distance" in message.content["config"].get("report", []):
            metrics["cosine-distance"] = 0.25
        return Message(RecordDict({"arrays": record({"w": w}), "metrics": metrics}), reply_to=message)

    result = strategy().start(FakeGrid([2, 1], answer), record(ZERO), num_rounds=10)
    assert isinstance(result.arrays, ArrayRecord)
    assert result.evaluate_metrics_clientapp[10]["loss"] < 0.2
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(2.0)
