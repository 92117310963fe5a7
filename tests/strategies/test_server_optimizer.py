from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from federation import FakeGrid, aggregate, numpy_state, record, reply
from flwr.app import ConfigRecord
from flwr.serverapp import strategy as flower
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from strategies import FedAvg, FedGH
from strategies.server_optimizer import ServerOptimizer

PARAMETERS = ("conv.weight", "scale")
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=1.0, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.1, betas=(0.9, 0.99), eps=1e-3),
    "adagrad": partial(torch.optim.Adagrad, lr=0.1),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.1, momentum=0.5),
}


def model(seed: int, dtype=np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "conv.weight": rng.normal(size=(3, 2, 2)).astype(dtype),
        "scale": rng.normal(size=()).astype(dtype),
        "bn.running_var": rng.uniform(0.5, 2, size=3).astype(dtype),
        "bn.num_batches_tracked": np.asarray(int(rng.integers(100))),
    }


def test_momentum_by_hand():
    # g_1 = 0 - 1 = -1, so w = 0 + 1 = 1. Then g_2 = 1 - 3 = -2, v = 0.9 (-1) - 2 = -2.9, w = 1 + 2.9.
    server = ServerOptimizer(partial(torch.optim.SGD, lr=1.0, momentum=0.9))
    first = server.step(record({"w": np.zeros(1)}), record({"w": np.ones(1)}))
    assert numpy_state(first)["w"].tolist() == [1.0]
    second = server.step(first, record({"w": np.full(1, 3.0)}))
    np.testing.assert_allclose(numpy_state(second)["w"], [3.9])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_only_parameters_are_stepped(dtype):
    sent, proposed = model(0, dtype), model(1, dtype)
    half = ServerOptimizer(partial(torch.optim.SGD, lr=0.5))
    new = numpy_state(half.step(record(sent), record(proposed)))
    assert list(new) == list(sent)
    tolerance = {np.float16: 1e-3, np.float32: 1e-6, np.float64: 1e-14}[dtype]
    for name, value in sent.items():
        parameter = name in PARAMETERS
        expected = value + 0.5 * (proposed[name] - value) if parameter else proposed[name]
        np.testing.assert_allclose(new[name], expected, rtol=tolerance, atol=tolerance)
        assert (new[name].dtype, new[name].shape) == (value.dtype, value.shape)


def assert_rounds_agree(optimizer, oracle, first_round=1):
    """Four rounds of two clients: averaging and a server optimizer against a strategy of Flower's, in float64."""
    sent = {name: value for name, value in model(0, np.float64).items() if name in PARAMETERS}  # Flower steps all
    ours = theirs = record(sent)
    server, grid = ServerOptimizer(optimizer), FakeGrid([1, 2])
    for this in range(4):
        states = [model(10 * this + client, np.float64) for client in (1, 2)]
        states = [{name: state[name] for name in PARAMETERS} for state in states]
        replies = [reply(1, states[0], 2), reply(2, states[1], 3)]
        proposed, _ = FedAvg().aggregate(this, ours, replies)
        ours = server.step(ours, proposed)
        oracle.configure_train(first_round + this, theirs, ConfigRecord(), grid)
        theirs, _ = oracle.aggregate_train(first_round + this, replies)
        for name in PARAMETERS:
            np.testing.assert_allclose(numpy_state(ours)[name], numpy_state(theirs)[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("lr", "momentum"), [(1.0, 0.9), (0.3, 0.5), (0.5, 0.0)])
def test_sgd_is_flowers_fedavgm(lr, momentum):
    oracle = flower.FedAvgM(server_learning_rate=lr, server_momentum=momentum)
    assert_rounds_agree(partial(torch.optim.SGD, lr=lr, momentum=momentum), oracle)


def test_adam_is_flowers_fedadam_without_eps():
    # torch adds eps to the square root of v after its bias correction, Flower adds τ before it: the same where both
    # are 0. And Flower corrects the bias of round t as if it were step t + 1, so its rounds are counted from 0 here.
    oracle = flower.FedAdam(eta=0.1, beta_1=0.9, beta_2=0.99, tau=0.0)
    assert_rounds_agree(partial(torch.optim.Adam, lr=0.1, betas=(0.9, 0.99), eps=0.0), oracle, first_round=0)


def test_adam_is_flowers_fedadam_without_memory():
    # With both betas 0 there is no bias to correct, and eps is τ.
    oracle = flower.FedAdam(eta=0.1, beta_1=0.0, beta_2=0.0, tau=0.5)
    assert_rounds_agree(partial(torch.optim.Adam, lr=0.1, betas=(0.0, 0.0), eps=0.5), oracle)


def test_adagrad_is_flowers_fedadagrad():
    oracle = flower.FedAdagrad(eta=0.1, tau=0.01)
    assert_rounds_agree(partial(torch.optim.Adagrad, lr=0.1, eps=0.01), oracle)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6), before=st.integers(0, 3))
def test_a_restored_optimizer_goes_on_bit_for_bit(optimizer, seed, before):
    one, other, arrays = ServerOptimizer(optimizer), ServerOptimizer(optimizer), record(model(seed))
    for this in range(before):
        arrays = one.step(arrays, record(model(seed + this + 1)))
    other.load_state_dict(one.state_dict())
    assert str(other.state_dict()) == str(one.state_dict())  # also before its first step
    twin = arrays
    for this in range(2):
        arrays, twin = (
            server.step(state, record(model(seed + this + 7))) for server, state in ((one, arrays), (other, twin))
        )
        assert [array.data for array in arrays.values()] == [array.data for array in twin.values()]


def test_a_state_is_named_by_tensor_and_stays_as_it_was():
    server = ServerOptimizer(OPTIMIZERS["sgd"])
    arrays = server.step(record({"w": np.zeros(1)}), record({"w": np.ones(1)}))
    state = server.state_dict()
    server.step(arrays, record({"w": np.ones(1)}))
    assert {name: memory["momentum_buffer"].tolist() for name, memory in state.items()} == {"w": [-1.0]}


def test_it_follows_any_rule():
    # FedGH proposes (1/8, 7/8) in test_strategies; half of the way to it.
    clients = {1: ({"w": np.array([1.0, 0.0])}, 1), 2: ({"w": np.array([-1.0, 1.0])}, 3)}
    proposed = aggregate(FedGH(weighting="examples"), {"w": np.zeros(2)}, clients)
    half = ServerOptimizer(partial(torch.optim.SGD, lr=0.5))
    assert numpy_state(half.step(record({"w": np.zeros(2)}), record(proposed)))["w"].tolist() == [1 / 16, 7 / 16]


def test_what_does_not_fit_is_named():
    server = ServerOptimizer(OPTIMIZERS["sgd"])
    server.step(record({"w": np.zeros(1)}), record({"w": np.ones(1)}))
    with pytest.raises(ValueError, match=r"tensors \['v', 'w'\]"):
        server.step(record({"v": np.zeros(1)}), record({"v": np.ones(1)}))
    restored = ServerOptimizer(OPTIMIZERS["sgd"])
    restored.load_state_dict(server.state_dict())
    with pytest.raises(ValueError, match=r"unknown tensors \['w'\]"):
        restored.step(record({"v": np.zeros(1)}), record({"v": np.ones(1)}))
    with pytest.raises(ValueError, match="LBFGS"):
        ServerOptimizer(torch.optim.LBFGS).step(record({"w": np.zeros(1)}), record({"w": np.ones(1)}))


@pytest.mark.parametrize("choice", ["sgd", "adam", "adagrad"])
def test_the_configs_make_one(choice):
    config = OmegaConf.load(Path(__file__).parents[2] / "conf" / "server_optimizer" / f"{choice}.yaml")
    server = ServerOptimizer(instantiate(config))
    arrays = numpy_state(server.step(record({"w": np.zeros(2)}), record({"w": np.ones(2)})))
    assert (arrays["w"] > 0).all()
