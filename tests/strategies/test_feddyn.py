import numpy as np
import pytest
import torch
from federation import FakeGrid, aggregate, numpy_state, record, reply, started
from flwr.app import ConfigRecord

from strategies import FedDyn

ZERO = {"w": np.zeros(2), "bn.running_var": np.ones(1), "n": np.array(0)}


def client(w, variance=1.0, batches=1):
    return {"w": np.array(w, dtype=float), "bn.running_var": np.array([variance]), "n": np.array(batches)}


def test_two_rounds_by_hand():
    # alpha = 1/2, m = 4. Round 1 from w = 0: Δ_1 = (1, 0), Δ_2 = (-1, 2). h = -(1/8) (0, 2) = (0, -1/4).
    # w⁺ = 1/2 (0, 2) - h/alpha = (0, 1) + (0, 1/2) = (0, 3/2). Examples (1, 3) count for the statistics alone.
    rule = FedDyn(alpha=0.5, num_registered=4)
    new = aggregate(rule, ZERO, {1: (client([1, 0], 1.0, 5), 1), 2: (client([-1, 2], 2.0, 7), 3)})
    assert new["w"].tolist() == [0.0, 1.5]
    assert new["bn.running_var"].tolist() == [1.75]
    assert new["n"] == 7
    assert rule.state_dict()["h"]["w"].tolist() == [0.0, -0.25]
    # Round 2, client 3 alone, Δ_3 = (2, -1/2): h = (0, -1/4) - (1/8) (2, -1/2) = (-1/4, -3/16).
    # w⁺ = (2, 1) - h/alpha = (2 + 1/2, 1 + 3/8).
    new = aggregate(rule, new, {3: (client([2, 1]), 1)}, server_round=2)
    assert new["w"].tolist() == [2.5, 1.375]


def test_the_learning_rate_scales_the_whole_step():
    rule = FedDyn(alpha=0.5, num_registered=4, server_learning_rate=0.5)
    new = aggregate(rule, ZERO, {1: (client([1, 0]), 1), 2: (client([-1, 2]), 3)})
    assert new["w"].tolist() == [0.0, 0.75]


def test_clients_that_stand_still_leave_the_minimum_alone():
    # At a stationary point of FedDyn the clients return what they were sent, and h is zero.
    new = aggregate(FedDyn(alpha=0.1), ZERO, {1: (ZERO, 1), 2: (ZERO, 1)})
    assert new["w"].tolist() == [0.0, 0.0]


def reach(learn, rounds, rule):
    """The model after some rounds of both clients, each a function of the model that it is sent."""
    sent = {"w": np.zeros(1)}
    for this in range(rounds):
        sent = aggregate(rule, sent, {k: ({"w": learn(k, sent["w"])}, 1) for k in (1, 2)}, server_round=this)
    return sent["w"]


def test_it_finds_the_minimum_that_averaging_of_local_minima_misses():
    # L_1 = 1/2 (w - 1)², L_2 = 9/2 (w + 1)²: the sum is least at -8/10, the mean of the local minima is 0.
    # Each client goes all the way: argmin L_k - h_k w + (alpha/2)(w - w^t)², then h_k ← h_k - alpha Δ_k.
    alpha, curvature, centre, own = 1.0, {1: 1.0, 2: 9.0}, {1: 1.0, 2: -1.0}, {1: 0.0, 2: 0.0}

    def learn(k, w):
        best = (curvature[k] * centre[k] + own[k] + alpha * w) / (curvature[k] + alpha)
        own[k] = own[k] - alpha * (best - w)
        return best

    np.testing.assert_allclose(reach(learn, 60, FedDyn(alpha=alpha)), [-0.8], atol=1e-6)


def test_m_is_fixed_at_the_start():
    # Ten are connected and two of them take part; later fewer are there.
    rule = FedDyn(fraction_train=0.2, alpha=0.5)
    rule.configure_train(1, record(ZERO), ConfigRecord(), FakeGrid(range(10)))
    assert rule.num_registered == 10
    rule.configure_train(2, record(ZERO), ConfigRecord(), FakeGrid(range(4)))
    assert rule.num_registered == 10
    named = FedDyn(alpha=0.5)
    named.client_names = {7: "lab", 8: "clinic", 9: "arena"}
    named.aggregate(1, record(ZERO), [reply(7, client([1, 0]))])
    assert named.num_registered == 3


def test_a_restored_one_goes_on_bit_for_bit():
    one, other = FedDyn(alpha=0.3), FedDyn(alpha=0.3)
    rng = np.random.default_rng(0)
    sent = {"w": rng.normal(size=9).astype(np.float16)}
    clients = {k: ({"w": rng.normal(size=9).astype(np.float16)}, 1) for k in (1, 2)}
    aggregate(one, sent, clients)
    state = one.state_dict()
    other.load_state_dict(state)
    assert np.array_equal(aggregate(one, sent, clients)["w"], aggregate(other, sent, clients)["w"])
    assert torch.equal(one.state_dict()["h"]["w"], other.state_dict()["h"]["w"])
    assert not torch.equal(state["h"]["w"], one.state_dict()["h"]["w"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha is a number > 0"),
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": 1.0, "num_registered": 0}, "num_registered"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        FedDyn(**options)


def test_more_clients_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="num_registered is 1, but 2 clients"):
        aggregate(FedDyn(alpha=1.0, num_registered=1), ZERO, {1: (ZERO, 1), 2: (ZERO, 1)})
    with pytest.raises(ValueError, match="num_registered is 0"):
        FedDyn(alpha=1.0).aggregate(1, record(ZERO), [reply(1, ZERO)])


def test_replies_stay_as_they_were():
    rule = started(FedDyn(alpha=0.5), ZERO, [1])
    sent = reply(1, client([1, 0]))
    rule.aggregate_train(1, [sent])
    assert numpy_state(sent.content["arrays"])["w"].tolist() == [1.0, 0.0]
