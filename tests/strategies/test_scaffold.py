import numpy as np
import pytest
import torch
from federation import numpy_state, record, reply

from strategies.scaffold import ControlVariate

START = {"w": np.array([1.0, 1.0]), "bn.running_mean": np.zeros(1), "n": np.array(3)}


def trained(w, steps):
    return {**START, "w": np.array(w, float)}, {"num-examples": 1, "steps": steps}


def test_two_rounds_by_hand():
    # N = 4. Round 1, c = 0: Δ_1 = (2, 0) in 5 steps of 0.1: Δc_1 = -(2, 0) / 0.5 = (-4, 0).
    # Δ_2 = (0, -1) in 2 steps of 0.5: Δc_2 = -(0, -1) / 1 = (0, 1). c = 1/4 ((-4, 0) + (0, 1)) = (-1, 1/4).
    control = ControlVariate(record(START), num_clients=4)
    assert {name: value.tolist() for name, value in numpy_state(control.arrays).items()} == {"w": [0.0, 0.0]}
    control.absorb(record(START), [reply(1, *trained([3, 1], 5)), reply(2, *trained([1, 0], 2))], [0.1, 0.5])
    np.testing.assert_allclose(numpy_state(control.arrays)["w"], [-1.0, 0.25])
    # Round 2, client 3 alone, Δ_3 = (1, 1) in 1 step of 1: Δc_3 = -c - (1, 1) = (0, -5/4), c = (-1, 1/4 - 5/16).
    control.absorb(record(START), [reply(3, *trained([2, 2], 1))], [1.0])
    np.testing.assert_allclose(numpy_state(control.arrays)["w"], [-1.0, -0.0625])


def test_it_is_the_mean_of_the_clients_own():
    # Option II on the client: c_k⁺ = c_k - c + (w - w_k) / (steps · lr). With everyone in every round, c = mean c_k.
    rng = np.random.default_rng(0)
    control, own = ControlVariate(record(START), num_clients=3), [np.zeros(2)] * 3
    for _ in range(3):
        c, states = numpy_state(control.arrays)["w"], [trained(rng.normal(size=2), k + 1) for k in range(3)]
        own = [o - c + (START["w"] - s["w"]) / (m["steps"] * 0.1) for o, (s, m) in zip(own, states, strict=True)]
        control.absorb(record(START), [reply(k, *state) for k, state in enumerate(states)], [0.1] * 3)
        np.testing.assert_allclose(numpy_state(control.arrays)["w"], np.mean(own, axis=0), rtol=1e-12)


def test_node_ids_change_no_bit_and_the_dtype_is_wide():
    rng = np.random.default_rng(0)
    start, *states = ({"w": rng.normal(size=50).astype(np.float16)} for _ in range(4))
    found = []
    for nodes in ([1, 2, 3], [9, 5, 7]):
        control = ControlVariate(record(start), num_clients=5)
        metrics = {"num-examples": 1, "steps": 2}
        replies = [reply(node, state, metrics) for node, state in zip(nodes, states, strict=True)]
        control.absorb(record(start), replies, [0.1, 0.2, 0.3])
        found.append(control.arrays["w"].data)
    assert found[0] == found[1]
    assert numpy_state(control.arrays)["w"].dtype == np.float32


def test_a_restored_one_is_the_same():
    one, other = ControlVariate(record(START), 2), ControlVariate(record(START), 2)
    one.absorb(record(START), [reply(1, *trained([3, 1], 5))], [0.1])
    state = one.state_dict()
    other.load_state_dict(state)
    assert other.arrays["w"].data == one.arrays["w"].data
    one.absorb(record(START), [reply(1, *trained([3, 1], 5))], [0.1])
    assert torch.equal(state["w"], torch.tensor([-2.0, 0.0], dtype=torch.float64))  # what was kept stays


@pytest.mark.parametrize(
    ("metrics", "learning_rate", "message"),
    [
        ({"num-examples": 1}, 0.1, "client '7': metric 'steps'"),
        ({"num-examples": 1, "steps": 0}, 0.1, "node 7: 0 steps"),
        ({"num-examples": 1, "steps": 2}, 0.0, "node 7: 2 steps of learning rate 0"),
    ],
)
def test_a_client_without_steps_is_named(metrics, learning_rate, message):
    with pytest.raises(ValueError, match=message):
        ControlVariate(record(START), 2).absorb(record(START), [reply(7, START, metrics)], [learning_rate])


def test_a_federation_has_clients():
    with pytest.raises(ValueError, match="num_clients"):
        ControlVariate(record(START), 0)
