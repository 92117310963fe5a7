import json
import math

import numpy as np
import pytest
import torch
from federation import FakeGrid, aggregate, numpy_state, record, reply, started
from flwr.app import ConfigRecord
from flwr.serverapp import strategy as flower
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import FedAvg, FedAW, FedCDW, FedGH
from strategies.diagnostics import MOST_COMPARED
from strategies.fedaw import gompertz
from strategies.randomness import generator

ALL = (FedAvg, FedAW, FedGH, FedCDW)
ZERO = {"w": np.zeros(2)}
RIGHT, LEFT_UP = {"w": np.array([1.0, 0.0])}, {"w": np.array([-1.0, 1.0])}


def random_state(seed: int, dtype=np.float32, spread: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "a.weight": (spread * rng.normal(size=(5, 4))).astype(dtype),
        "b.bias": (spread * rng.normal(size=6)).astype(dtype),
        "bn.running_var": rng.uniform(0.5, 2, size=3).astype(dtype),
        "bn.num_batches_tracked": np.asarray(int(rng.integers(1000))),
    }


def matrix(sent, clients):
    return torch.tensor(
        np.stack([np.concatenate([(c[n] - sent[n]).ravel() for n in ("a.weight", "b.bias")]) for c in clients])
    ).double()


def f(theta):
    return 5 * (1 - math.exp(-math.exp(-5 * (theta - 1))))


# Two clients with n = (1, 3), Δ_1 = (1, 0), Δ_2 = (-1, 1), so p = (1/4, 3/4).


def two_clients(strategy, **options):
    metrics = options.pop("metrics", ({"num-examples": 1}, {"num-examples": 3}))
    return aggregate(strategy, ZERO, {1: (RIGHT, metrics[0]), 2: (LEFT_UP, metrics[1])}, **options)["w"]


def test_fedavg_by_hand():
    # w⁺ = 1/4 (1, 0) + 3/4 (-1, 1) = (-1/2, 3/4); half of it for η = 1/2.
    assert two_clients(FedAvg()).tolist() == [-0.5, 0.75]
    assert two_clients(FedAvg(server_learning_rate=0.5)).tolist() == [-0.25, 0.375]


def psi_by_hand():
    # g = (-1/2, 3/4), |g| = √13/4. cos θ_1 = -1/2 / |g| = -2/√13; cos θ_2 = (1/2 + 3/4) / (|g| √2) = 5/√26.
    first = math.exp(f(math.acos(-2 / math.sqrt(13))))
    second = 3 * math.exp(f(math.acos(5 / math.sqrt(26))))
    return first / (first + second), second / (first + second)


def test_fedaw_by_hand():
    strategy = FedAW()
    psi = psi_by_hand()
    np.testing.assert_allclose(two_clients(strategy), [psi[0] - psi[1], psi[1]])
    state = strategy.state_dict()
    assert state["participations"] == {"1": 1, "2": 1}
    assert state["angles"]["1"] == pytest.approx(math.acos(-2 / math.sqrt(13)))


def test_fedgh_by_hand():
    # Δ_1' = (1/2, 1/2), Δ_2' = (0, 1), weighted by FedAW's ψ from Δ_1 and Δ_2.
    psi = psi_by_hand()
    strategy = FedGH()
    np.testing.assert_allclose(two_clients(strategy), [psi[0] / 2, psi[0] / 2 + psi[1]])
    c = strategy.diagnostics["c"]
    assert c == {"1": pytest.approx(1.0), "2": pytest.approx(psi[1] + psi[0] / 2)}
    assert strategy.diagnostics["psi"] == {"1": pytest.approx(psi[0]), "2": pytest.approx(psi[1])}


def test_fedgh_weighted_by_examples_by_hand():
    # 1/4 (1/2, 1/2) + 3/4 (0, 1) = (1/8, 7/8), of length √50/8; unprojected (-1/2, 3/4), of length √13/4.
    np.testing.assert_allclose(two_clients(FedGH(weighting="examples")), [1 / 8, 7 / 8])
    rescaled = FedGH(weighting="examples", rescale="norm")
    factor = (math.sqrt(13) / 4) / (math.sqrt(50) / 8)
    np.testing.assert_allclose(two_clients(rescaled), [factor / 8, factor * 7 / 8])
    assert rescaled.diagnostics["norm_before"] == pytest.approx(math.sqrt(13) / 4)
    assert rescaled.diagnostics["norm_after"] == pytest.approx(math.sqrt(50) / 8)
    assert rescaled.state_dict()["angles"] == {}


def test_fedcdw_by_hand():
    # d = (0.3, 0.1): c = (3/4, 1/4), whatever the examples say.
    metrics = ({"num-examples": 1, "cosine-distance": 0.3}, {"num-examples": 3, "cosine-distance": 0.1})
    np.testing.assert_allclose(two_clients(FedCDW(), metrics=metrics), [0.5, 0.25])


def test_layers_are_projected_on_their_own():
    # In "a" the clients conflict as above, in "b" they agree; as whole updates they do not conflict at all.
    sent = {"a": np.zeros(2), "b": np.zeros(1)}
    clients = {
        1: ({"a": np.array([1.0, 0.0]), "b": np.array([10.0])}, 1),
        2: ({"a": np.array([-1.0, 1.0]), "b": np.array([10.0])}, 3),
    }
    whole = FedGH(weighting="examples")
    new = aggregate(whole, sent, clients)
    np.testing.assert_allclose(new["a"], [-0.5, 0.75])
    assert whole.diagnostics["conflicting"] == 0.0
    layers = FedGH(weighting="examples", granularity="layer")
    new = aggregate(layers, sent, clients)
    np.testing.assert_allclose(new["a"], [1 / 8, 7 / 8])
    np.testing.assert_allclose(new["b"], [10.0])
    assert layers.diagnostics["conflicting_per_tensor"] == {"a": 1.0, "b": 0.0}
    # c is (1, 7/8) in "a", of size 2, and p in "b", of size 1.
    assert layers.diagnostics["c"]["1"] == pytest.approx((2 * 1 + 1 / 4) / 3)


def test_gompertz_by_hand():
    theta = torch.tensor([0.0, 1.0, math.pi], dtype=torch.float64)
    np.testing.assert_allclose(gompertz(theta), [5.0, 5 * (1 - math.exp(-1)), f(math.pi)])


def test_angles_are_averaged_over_participations():
    strategy = FedAW()
    two_clients(strategy)
    first = strategy.state_dict()["angles"]["1"]
    aggregate(strategy, ZERO, {1: (RIGHT, 1)}, server_round=2)  # alone: angle 0
    assert strategy.state_dict()["angles"]["1"] == pytest.approx(first / 2)
    assert strategy.state_dict()["participations"] == {"1": 2, "2": 1}


def test_two_updates_of_one_client_are_two_participations():
    # Both updates are its own: θ̃ of client 1 is the mean of their angles to g = 1/2 (1, 0) + 1/2 (-1, 1) = (0, 1/2).
    strategy = FedAW()
    strategy.aggregate(1, record(ZERO), [reply(1, RIGHT, 1), reply(1, LEFT_UP, 1)])
    first, second = math.pi / 2, math.pi / 4
    assert strategy.state_dict()["participations"] == {"1": 2}
    assert strategy.state_dict()["angles"]["1"] == pytest.approx((first + second) / 2)
    # Smoothed as they come: the first update still stands at its own angle when its weight is taken.
    weights = [math.exp(f(first)), math.exp(f((first + second) / 2))]
    assert strategy.diagnostics["psi"] == {
        "1": pytest.approx(weights[0] / sum(weights)),
        "1#2": pytest.approx(weights[1] / sum(weights)),
    }
    assert strategy.diagnostics["clients"] == ["1", "1#2"]


def test_state_survives_json():
    one, other = FedGH(seed=3), FedGH(seed=3)
    two_clients(one)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert two_clients(one, server_round=2).tolist() == two_clients(other, server_round=2).tolist()
    assert one.state_dict() == other.state_dict()


# The zero cases that the rules name.


@pytest.mark.parametrize("strategy", [FedAW, FedGH])
def test_a_zero_update_stands_at_a_right_angle(strategy):
    rule = strategy()
    aggregate(rule, ZERO, {1: (ZERO, 1), 2: (RIGHT, 1)})
    assert rule.state_dict()["angles"] == {"1": pytest.approx(math.pi / 2), "2": pytest.approx(0.0)}


@pytest.mark.parametrize("strategy", [FedAW, FedGH])
@pytest.mark.parametrize("states", [(ZERO, ZERO), (RIGHT, {"w": -RIGHT["w"]})])
def test_no_mean_direction_weights_by_examples(strategy, states):
    rule = strategy()
    new = aggregate(rule, ZERO, {1: (states[0], 2), 2: (states[1], 2)})
    assert rule.diagnostics["psi"] == {"1": 0.5, "2": 0.5}
    assert new["w"].tolist() == [0.0, 0.0]
    assert rule.state_dict() == {"angles": {}, "participations": {}}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_opposed_updates_of_a_real_size_cancel(dtype):
    d = (0.01 * np.random.default_rng(0).normal(size=100_003)).astype(dtype)
    sent = {"w": np.zeros(100_003, dtype)}
    rule = FedAW()
    aggregate(rule, sent, {1: ({"w": d}, 1), 2: ({"w": -d}, 1)})
    assert rule.diagnostics["psi"] == {"1": 0.5, "2": 0.5}


@pytest.mark.parametrize("distances", [(0.0, 0.0), (None, None)])
def test_fedcdw_without_distances_weights_by_examples(distances):
    metrics = tuple(
        {"num-examples": n} if d is None else {"num-examples": n, "cosine-distance": d}
        for n, d in zip((1, 3), distances, strict=True)
    )
    assert two_clients(FedCDW(), metrics=metrics).tolist() == [-0.5, 0.75]


@pytest.mark.parametrize("bad", [{}, {"cosine-distance": float("nan")}, {"cosine-distance": -0.2}])
def test_fedcdw_names_the_client_without_a_distance(bad):
    metrics = ({"num-examples": 1, "cosine-distance": 0.3}, {"num-examples": 3, **bad})
    with pytest.raises(ValueError, match="client '2': metric 'cosine-distance'"):
        two_clients(FedCDW(), metrics=metrics)


def test_fedcdw_asks_for_the_distance_and_leaves_the_callers_config_alone():
    config = ConfigRecord({"report": ["loss"], "lr": 0.1})
    (message, *_) = FedCDW().configure_train(1, record(ZERO), config, FakeGrid([1, 2]))
    assert message.content["config"]["report"] == ["loss", "cosine-distance"]
    assert message.content["config"]["server-round"] == 1
    assert dict(config) == {"report": ["loss"], "lr": 0.1}
    (message, *_) = FedGH().configure_train(1, record(ZERO), ConfigRecord(), FakeGrid([1, 2]))
    assert "report" not in message.content["config"]


# Properties and oracles.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), examples=st.lists(st.integers(1, 500), min_size=1, max_size=5))
def test_fedavg_equals_flowers_own(dtype, seed, examples):
    sent = random_state(seed, dtype)
    replies = [
        reply(k, random_state(seed + 1 + k, dtype), {"num-examples": n, "loss": 1.0 / n})
        for k, n in enumerate(examples)
    ]
    ours = started(FedAvg(min_train_nodes=1, min_available_nodes=1), sent, range(len(examples)))
    arrays, metrics = ours.aggregate_train(1, replies)
    expected, expected_metrics = flower.FedAvg().aggregate_train(1, replies)
    new, expected = numpy_state(arrays), numpy_state(expected)
    tolerance = 2e-6 if dtype == np.float32 else 1e-12
    for name in ("a.weight", "b.bias", "bn.running_var"):
        np.testing.assert_allclose(new[name], expected[name], rtol=tolerance, atol=tolerance)
        assert new[name].dtype == dtype
    assert metrics == expected_metrics


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 8),
    granularity=st.sampled_from(["model", "layer"]),
    weighting=st.sampled_from(["adaptive", "examples"]),
)
def test_without_conflicts_fedgh_is_fedaw(seed, size, granularity, weighting):
    sent = random_state(seed)
    clients = {}
    for k in range(size):
        state = random_state(seed + 1 + k)
        for name in ("a.weight", "b.bias"):
            state[name] = sent[name] + np.abs(state[name])  # all cosines positive, in every tensor
        clients[k] = (state, k + 1)
    plain = FedAW() if weighting == "adaptive" else FedAvg()
    expected = aggregate(plain, sent, clients)
    new = aggregate(FedGH(granularity=granularity, weighting=weighting), sent, clients)
    assert all(np.array_equal(new[name], expected[name]) for name in sent)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 10))
def test_fedgh_equals_the_projection_of_whole_vectors(seed, size):
    sent = random_state(seed, np.float64)
    states = [random_state(seed + 1 + k, np.float64) for k in range(size)]
    rule = FedGH(seed=seed, weighting="examples")
    new = aggregate(rule, sent, {k: (state, 1) for k, state in enumerate(states)})
    vectors = matrix(sent, states)  # names "0" … "9" sort like the node ids
    drawn = generator(seed, "visiting order", 1)
    total = torch.zeros(vectors.shape[1], dtype=torch.float64)
    for i in range(size):
        v = vectors[i].clone()
        for j in torch.randperm(size, generator=drawn).tolist():
            if j != i and v @ vectors[j] < 0:
                v -= (v @ vectors[j]) / (vectors[j] @ vectors[j]) * vectors[j]
        total += v / size
    moved = torch.tensor(np.concatenate([(new[n] - sent[n]).ravel() for n in ("a.weight", "b.bias")]))
    torch.testing.assert_close(moved, total, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("strategy", ALL)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_client_moves_the_model_to_its_own(strategy, dtype):
    sent, state = random_state(0, dtype), random_state(1, dtype)
    new = aggregate(strategy(), sent, {4: (state, 7)})
    for name in sent:
        np.testing.assert_allclose(new[name], state[name], rtol=1e-2 if dtype == np.float16 else 1e-6, atol=1e-6)
        assert new[name].dtype == sent[name].dtype


@pytest.mark.parametrize("strategy", ALL)
def test_duplicate_and_zero_updates_average_as_one_would_expect(strategy):
    sent, state = random_state(0), random_state(1)
    new = aggregate(strategy(), sent, dict.fromkeys(range(3), (state, 2)))
    np.testing.assert_allclose(new["a.weight"], state["a.weight"], rtol=1e-5, atol=1e-6)
    still = aggregate(strategy(), sent, dict.fromkeys(range(3), (sent, 2)))
    assert all(np.array_equal(still[name], sent[name]) for name in ("a.weight", "b.bias"))


OPTIONS = [
    (FedAvg, {}),
    (FedAW, {}),
    (FedCDW, {}),
    (FedGH, {}),
    (FedGH, {"granularity": "layer", "rescale": "norm"}),
    (FedGH, {"scheme": "pairwise", "granularity": "layer"}),
    (FedGH, {"threshold": 0.2, "weighting": "examples"}),
]


@pytest.mark.parametrize(("strategy", "options"), OPTIONS)
def test_arrival_order_and_node_ids_change_no_bit(strategy, options):
    sent = random_state(0)
    states = {name: random_state(1 + n) for n, name in enumerate("edcba")}
    results = []
    for seed in range(3):
        ids = {name: int(n) for name, n in zip(states, np.random.default_rng(seed).permutation(99)[:5], strict=True)}
        rule = started(strategy(**options, seed=1), sent, list(ids.values()))
        rule.client_names = {node_id: name for name, node_id in ids.items()}
        replies = [reply(ids[name], state, 1 + ord(name)) for name, state in states.items()]
        np.random.default_rng(seed).shuffle(replies)
        arrays, metrics = rule.aggregate_train(1, replies)
        results.append(([array.data for array in arrays.values()], dict(metrics), rule.diagnostics))
    assert results[0] == results[1] == results[2]
    assert results[0][2]["clients"] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(("strategy", "options"), OPTIONS)
def test_diagnostics_are_plain_json(strategy, options):
    rule = strategy(**options)
    aggregate(rule, random_state(0), {k: (random_state(k + 1), 1) for k in range(3)})
    told = json.loads(json.dumps(rule.diagnostics, allow_nan=False))
    assert told == rule.diagnostics
    assert sum(told["psi"].values()) == pytest.approx(1.0)
    assert np.array(told["cosines"]).shape == (3, 3)
    assert told["smallest_cosine"] <= told["mean_cosine"]
    vectors = matrix(random_state(0), [random_state(k + 1) for k in range(3)])
    np.testing.assert_allclose(list(told["update_norms"].values()), vectors.norm(dim=1), rtol=1e-5)


def test_a_matrix_of_cosines_is_left_out_where_no_picture_could_show_it():
    for clients, told in ((MOST_COMPARED, True), (MOST_COMPARED + 1, False)):
        rule = FedGH()
        aggregate(rule, random_state(0), {k: (random_state(k + 1), 1) for k in range(clients)})
        assert ("cosines" in rule.diagnostics) is told
        assert {"conflicting", "conflicting_per_tensor", "mean_cosine", "update_norms"} < rule.diagnostics.keys()


def test_one_zero_client_has_no_cosines():
    rule = FedAW()
    aggregate(rule, ZERO, {1: (ZERO, 1)})
    json.dumps(rule.diagnostics, allow_nan=False)
    assert rule.diagnostics["mean_cosine"] is None
    assert rule.diagnostics["conflicting"] == 0.0


def test_averaging_alone_builds_no_gramian(monkeypatch):
    def refuse(self):
        raise AssertionError("built a Gramian")

    monkeypatch.setattr("strategies.updates.ClientUpdates.gramians", property(refuse))
    rule = FedAvg(report_conflicts=False)
    two_clients(rule)
    assert set(rule.diagnostics) == {"round", "clients", "examples", "psi", "c"}
    with pytest.raises(AssertionError, match="built"):
        two_clients(FedAvg())
