"""The Gaussian mechanism, by hand and by counting; fixed generators stand in for the operating system's randomness."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from federation import aggregate, numpy_state, record, reply
from flwr.supercore.differential_privacy import compute_clip_model_update, compute_stdv
from scipy import stats

import strategies
from strategies.gaussian import GaussianMechanism, system_normal


def silent(count: int) -> np.ndarray:
    return np.zeros(count)


def fixed(seed: int = 0) -> Callable[[int], np.ndarray]:
    return np.random.default_rng(seed).standard_normal


def test_the_systems_normal_numbers_are_standard_normal_and_never_the_same() -> None:
    found = system_normal(200_001)
    assert found.shape == (200_001,)
    assert np.isfinite(found).all()
    # Fails once in a million runs where the numbers are what they should be.
    assert stats.kstest(found, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(found[:100_000], found[100_001:])[0, 1]) < 5 / math.sqrt(100_000)  # the two of a pair
    assert not np.array_equal(system_normal(8), system_normal(8))


def test_a_release_by_hand() -> None:
    """The update (3, 4, 0) has length 5; clipped to 2 it is (1.2, 1.6, 0)."""
    start = [np.array([[1.0, 2.0]], np.float32), np.array([0.5], np.float32)]
    trained = [np.array([[4.0, 6.0]], np.float32), np.array([0.5], np.float32)]
    shown = GaussianMechanism(2.0, 1.0, silent).release(start, trained)
    assert np.allclose(shown[0], [[2.2, 3.6]])
    assert np.allclose(shown[1], [0.5])
    assert [array.dtype for array in shown] == [np.float32, np.float32]
    assert shown[0].shape == (1, 2)
    assert np.allclose(GaussianMechanism(9.0, 1.0, silent).release(start, trained)[0], trained[0])  # short enough


def test_a_release_clips_as_flower_does() -> None:
    rng = np.random.default_rng(1)
    start = [rng.normal(size=shape) for shape in ((4, 3), (7,))]
    trained = [array + rng.normal(size=array.shape) for array in start]
    expected = [array.copy() for array in trained]
    compute_clip_model_update(expected, start, 0.3)
    for found, wanted in zip(GaussianMechanism(0.3, 1.0, silent).release(start, trained), expected, strict=True):
        assert np.allclose(found, wanted, rtol=1e-12)


def test_the_noise_of_a_release_has_the_deviation_that_it_says() -> None:
    start = [np.zeros(300_000, np.float32), np.zeros((100, 1000), np.float32)]
    shown = GaussianMechanism(0.5, 3.0, fixed()).release(start, start)
    noise = np.concatenate([array.ravel() for array in shown])
    assert stats.kstest(noise / 1.5, "norm").pvalue > 1e-3
    assert noise.std() == pytest.approx(1.5, rel=5 / math.sqrt(2 * noise.size))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_released_as_noise_alone(broken: float) -> None:
    start = [np.array([1.0, 1.0], np.float32)]
    trained = [np.array([broken, 5.0], np.float32)]
    shown = GaussianMechanism(1.0, 1.0, silent).release(start, trained)
    assert shown[0].tolist() == [1.0, 1.0]
    assert GaussianMechanism(1.0, 1.0, silent).release(start, start)[0].tolist() == [1.0, 1.0]  # no update at all


@pytest.mark.parametrize(("norm", "noise"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_a_mechanism_without_noise_or_clipping_is_refused(norm: float, noise: float) -> None:
    with pytest.raises(ValueError, match="is a number > 0"):
        GaussianMechanism(norm, noise)


def private(normal: Callable[[int], np.ndarray], expected: int, **options: float) -> strategies.FedAvg:
    strategy = strategies.FedAvg(equal_weights=True, **options)
    strategy.mechanism, strategy.expected = GaussianMechanism(1.0, 2.0, normal), expected
    return strategy


SENT = {"w": np.array([1.0, 1.0], np.float32), "b": np.array([0.0], np.float32)}
CLIENTS = {  # updates of length 5 and 0.5; 1,000 examples against 1
    1: ({"w": np.array([4.0, 5.0], np.float32), "b": np.array([0.0], np.float32)}, 1000),
    2: ({"w": np.array([1.0, 1.0], np.float32), "b": np.array([0.5], np.float32)}, 1),
}


def test_the_mean_of_clipped_updates_by_hand() -> None:
    """Clipped to length 1 they are (0.6, 0.8, 0) and (0, 0, 0.5); each counts a half, however many examples."""
    found = aggregate(private(silent, 2), SENT, CLIENTS)
    assert np.allclose(found["w"], [1.3, 1.4])
    assert np.allclose(found["b"], [0.25])


def test_a_client_that_does_not_answer_is_an_update_of_zeros() -> None:
    found = aggregate(private(silent, 4), SENT, CLIENTS)
    assert np.allclose(found["w"], [1.15, 1.2])
    assert np.allclose(found["b"], [0.125])


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_the_noise_of_the_mean_is_flowers_and_shrinks_with_the_step(rate: float) -> None:
    sent = {"w": np.zeros(200_000, np.float32)}
    clients = {node: ({"w": np.zeros(200_000, np.float32)}, 1) for node in (1, 2)}
    found = aggregate(private(fixed(), 4, server_learning_rate=rate), sent, clients)["w"]
    assert stats.kstest(found / (rate * compute_stdv(2.0, 1.0, 4)), "norm").pvalue > 1e-3


def test_one_client_moves_the_mean_by_the_clipping_norm_at_most() -> None:
    """What ε is calibrated to: with and without any one client, the means without noise lie C / n apart at most."""
    rng = np.random.default_rng(2)
    sent = {"w": np.zeros(5, np.float32)}
    strategy = private(silent, 3)
    for scale in (0.1, 1.0, 1e6):
        states = [{"w": (scale * rng.normal(size=5)).astype(np.float32)} for _ in range(3)]
        replies = [reply(node, state, 7 * node) for node, state in enumerate(states, start=1)]
        whole = numpy_state(strategy.aggregate(1, record(sent), replies)[0])["w"]
        for left_out in range(3):
            others = replies[:left_out] + replies[left_out + 1 :]
            without = numpy_state(strategy.aggregate(1, record(sent), others)[0])["w"]
            assert np.linalg.norm(whole - without) <= (1 + 1e-5) / 3


def test_equal_weights_are_of_fedavg_alone_and_what_the_noise_needs() -> None:
    found = aggregate(strategies.FedAvg(equal_weights=True), SENT, CLIENTS)
    assert np.allclose(found["w"], [2.5, 3.0])
    with pytest.raises(ValueError, match="equal_weights is of FedAvg, and FedGH has weights of its own"):
        strategies.FedGH(equal_weights=True)
    with pytest.raises(ValueError, match="equal_weights is of FedAvg, and FedMedian has"):
        strategies.FedMedian(equal_weights=True)
    strategy = private(silent, 2)
    strategy.equal_weights = False
    with pytest.raises(ValueError, match="calibrated to equal_weights=True"):
        aggregate(strategy, SENT, CLIENTS)
