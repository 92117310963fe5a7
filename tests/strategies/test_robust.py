import json
from unittest.mock import patch

import numpy as np
import pytest
import torch
from federation import aggregate, numpy_state, record, reply, started
from flwr.serverapp import strategy as flower
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import Bulyan, FedMedian, FedTrimmedAvg, Krum, MultiKrum
from strategies.robust import central

ALL = (Krum, MultiKrum, Bulyan, FedMedian, FedTrimmedAvg)
ZERO = {"w": np.zeros(2)}


def on_a_line(*values: float):
    """Clients 1, 2, … at (value, 0)."""
    return {k + 1: ({"w": np.array([value, 0.0])}, k + 1) for k, value in enumerate(values)}


def test_krum_by_hand():
    # n = 5, f = 1: the sum of squared distances to the 2 nearest. At 0: 1 + 4 = 5; 1: 1 + 1 = 2; 2: 1 + 4 = 5;
    # 4: 4 + 9 = 13; 100: 96² + 98². Client 2 is chosen, whatever its examples.
    rule = Krum(num_malicious_nodes=1)
    assert aggregate(rule, ZERO, on_a_line(0, 1, 2, 4, 100))["w"].tolist() == [1.0, 0.0]
    assert rule.diagnostics["c"] == {"1": 0.0, "2": 1.0, "3": 0.0, "4": 0.0, "5": 0.0}


def test_multikrum_by_hand():
    # The scores of above: 2, 5, 5, 13, …. The first two are clients 2 and 1, with examples 2 and 1: (2·1 + 1·0) / 3.
    rule = MultiKrum(num_malicious_nodes=1, num_nodes_to_select=2)
    np.testing.assert_allclose(aggregate(rule, ZERO, on_a_line(0, 1, 2, 4, 100))["w"], [2 / 3, 0])
    # By default n - f - 2 = 2 as well.
    np.testing.assert_allclose(
        aggregate(MultiKrum(num_malicious_nodes=1), ZERO, on_a_line(0, 1, 2, 4, 100))["w"], [2 / 3, 0]
    )


def test_krum_takes_a_client_without_examples_too():
    clients = {k: (state, 0 if k == 2 else 1) for k, (state, _) in on_a_line(0, 1, 2, 4, 100).items()}
    assert aggregate(Krum(num_malicious_nodes=1), ZERO, clients)["w"].tolist() == [1.0, 0.0]


def test_median_by_hand():
    clients = {
        1: ({"w": np.array([1.0, 5.0])}, 1),
        2: ({"w": np.array([2.0, -5.0])}, 9),
        3: ({"w": np.array([99.0, 0.5])}, 1),
    }
    assert aggregate(FedMedian(), ZERO, clients)["w"].tolist() == [2.0, 0.5]
    assert aggregate(FedMedian(server_learning_rate=0.5), ZERO, clients)["w"].tolist() == [1.0, 0.25]
    assert aggregate(FedMedian(), ZERO, on_a_line(1, 2, 4, 99))["w"].tolist() == [3.0, 0.0]


def test_trimmed_mean_by_hand():
    # ⌊0.25 · 4⌋ = 1 at each end: (2 + 4) / 2. ⌊0.2 · 4⌋ = 0: the plain mean.
    assert aggregate(FedTrimmedAvg(beta=0.25), ZERO, on_a_line(99, 2, 4, -50))["w"].tolist() == [3.0, 0.0]
    assert aggregate(FedTrimmedAvg(beta=0.2), ZERO, on_a_line(99, 2, 4, -50))["w"].tolist() == [13.75, 0.0]


def test_bulyan_by_hand():
    # n = 7, f = 1: Krum's score over the 4 nearest. At 0: 1 + 4 + 9 + 16 = 30; 1: 1 + 1 + 4 + 9 = 15; 2: 1 + 1 + 4 + 4
    # = 10; 3: 1 + 1 + 4 + 4 = 10; 4: 1 + 4 + 1 + 9 = 15 (to 3, 2, 5, 1); 5: 1 + 4 + 9 + 16 = 30; 100: far.
    # θ = 5 of them: 2, 3, 1, 4, and 0, which comes before 5. Around their median 2 the θ - 2 = 3 nearest are 1, 2, 3.
    new = aggregate(Bulyan(num_malicious_nodes=1), ZERO, on_a_line(0, 1, 2, 3, 4, 5, 100))
    assert new["w"].tolist() == [2.0, 0.0]
    # With 2.6 for 2, 5 is more central than 0 (26.76 against 32.76): the median is 3, and 2.6, 3, 4 are nearest to it.
    new = aggregate(Bulyan(num_malicious_nodes=1), ZERO, on_a_line(0, 1, 2.6, 3, 4, 5, 100))
    np.testing.assert_allclose(new["w"], [(2.6 + 3 + 4) / 3, 0])


def test_statistics_follow_the_rule_and_counters_the_maximum():
    sent = {"w": np.zeros(1), "bn.running_var": np.ones(1), "n": np.array(1)}
    clients = {
        k: ({"w": np.array([w]), "bn.running_var": np.array([v]), "n": np.array(n)}, 1)
        for k, (w, v, n) in enumerate([(0.0, 5.0, 9), (1.0, 2.0, 4), (1.5, 3.0, 7)])
    }
    chosen = aggregate(Krum(), sent, clients)  # to the one nearest: 1, 1/4, 1/4; the first of equals
    assert (chosen["w"].item(), chosen["bn.running_var"].item(), chosen["n"].item()) == (1.0, 2.0, 9)
    middle = aggregate(FedMedian(server_learning_rate=0.5), sent, clients)
    assert (middle["w"].item(), middle["bn.running_var"].item(), middle["n"].item()) == (0.5, 3.0, 9)
    assert middle["n"].dtype == sent["n"].dtype


ORACLES = [
    (Krum(num_malicious_nodes=2), flower.Krum(num_malicious_nodes=2)),
    (
        MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3),
        flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3),
    ),
    (Bulyan(num_malicious_nodes=1), flower.Bulyan(num_malicious_nodes=1)),
    (FedMedian(), flower.FedMedian()),
    (FedTrimmedAvg(beta=0.3), flower.FedTrimmedAvg(beta=0.3)),
]


@pytest.mark.parametrize(("ours", "oracle"), ORACLES, ids=lambda rule: type(rule).__name__)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), size=st.integers(7, 11))
def test_equals_flowers_own(ours, oracle, seed, size):
    rng = np.random.default_rng(seed)
    sent = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=())}
    states = [{name: rng.normal(size=value.shape) for name, value in sent.items()} for _ in range(size)]
    examples = rng.integers(1, 9, size=size).tolist()
    replies = [reply(100 + k, state, examples[k]) for k, state in enumerate(states)]
    arrays, _ = ours.aggregate(1, record(sent), replies)
    for message, state in zip(replies, states, strict=True):  # Flower takes the arrays out of the replies
        after = numpy_state(message.content["arrays"])
        assert all(np.array_equal(after[name], value) for name, value in state.items())
    with patch("gc.collect"):  # Flower calls it for each array that it takes: half a minute of Bulyan
        expected, _ = oracle.aggregate_train(1, replies)
    for name in sent:
        np.testing.assert_allclose(numpy_state(arrays)[name], numpy_state(expected)[name], rtol=1e-9, atol=1e-12)


def test_a_large_model_does_not_drown_the_distances():
    # Weights of about 1000, updates of about 0.1: |x|² + |y|² - 2 x·y of whole float32 models is rounding.
    rng = np.random.default_rng(0)
    sent = rng.normal(1000, 1, size=1000).astype(np.float32)
    centre = rng.normal(size=1000)
    replies = [
        reply(k, {"w": sent + (0.1 * (centre + spread * rng.normal(size=1000))).astype(np.float32)})
        for k, spread in enumerate([1.0, 0.01, 1.0, 1.0, 1.0])
    ]
    rule = Krum(num_malicious_nodes=1)
    rule.aggregate(1, record({"w": sent}), replies)
    assert rule.diagnostics["c"]["1"] == 1.0


def test_central_takes_the_first_of_equals():
    assert central(torch.zeros(4, 4, dtype=torch.float64), 0, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("rule", "replies", "message"),
    [
        (Krum(), 2, "Krum with num_malicious_nodes=0 needs 3 replies, got 2"),
        (Krum(num_malicious_nodes=1), 4, "needs 5 replies, got 4"),
        (MultiKrum(num_nodes_to_select=6), 5, "num_malicious_nodes=0, num_nodes_to_select=6 needs 6 replies"),
        (Bulyan(num_malicious_nodes=1), 6, "Bulyan with num_malicious_nodes=1 needs 7 replies, got 6"),
    ],
)
def test_too_few_replies_are_one_line(rule, replies, message):
    with pytest.raises(ValueError, match=message):
        aggregate(rule, ZERO, on_a_line(*range(replies)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Krum(num_malicious_nodes=-1), "num_malicious_nodes"),
        (lambda: Bulyan(num_malicious_nodes=-1), "num_malicious_nodes"),
        (lambda: MultiKrum(num_nodes_to_select=0), "num_nodes_to_select"),
        (lambda: FedTrimmedAvg(beta=0.5), "beta"),
        (lambda: FedTrimmedAvg(beta=-0.1), "beta"),
    ],
)
def test_a_wrong_option_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("strategy", ALL)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_arrival_order_and_node_ids_change_no_bit(strategy, dtype):
    rng = np.random.default_rng(0)
    sent = {"w": rng.normal(size=300).astype(dtype), "n": np.array(1)}
    states = {name: {"w": rng.normal(size=300).astype(dtype), "n": np.array(2)} for name in "edcba"}
    results = []
    for order in ("abcde", "ecadb"):
        ids = {name: int(n) for name, n in zip(order, rng.permutation(99)[:5], strict=True)}
        rule = started(strategy(), sent, list(ids.values()))
        rule.client_names = {node: name for name, node in ids.items()}
        arrays, _ = rule.aggregate_train(1, [reply(ids[name], states[name], 1) for name in order])
        results.append(([array.data for array in arrays.values()], rule.diagnostics))
        assert numpy_state(arrays)["w"].dtype == dtype
    assert results[0] == results[1]
    json.dumps(results[0][1], allow_nan=False)


@pytest.mark.parametrize("strategy", [FedMedian, FedTrimmedAvg])
def test_a_rule_by_coordinates_has_no_weights_to_tell(strategy):
    rule = strategy()
    aggregate(rule, ZERO, on_a_line(1, 2, 3))
    assert {"cosines", "update_norms", "conflicting"} < set(rule.diagnostics)
    assert not {"psi", "c", "norm_after"} & set(rule.diagnostics)
    silent = strategy(report_conflicts=False)
    aggregate(silent, ZERO, on_a_line(1, 2, 3))
    assert set(silent.diagnostics) == {"round", "clients", "examples"}
