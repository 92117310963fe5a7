import numpy as np
import pytest
import torch
from federation import numpy_state, record, reply
from flwr.app import Array
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import npy, updates
from strategies.updates import ClientUpdates


def model(seed: int, dtype=np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "conv.weight": rng.normal(size=(4, 3, 3, 3)).astype(dtype),
        "bn.weight": rng.normal(size=7).astype(dtype),
        "bn.running_mean": rng.normal(size=7).astype(dtype),
        "bn.running_var": rng.uniform(0.1, 2.0, size=7).astype(dtype),
        "bn.num_batches_tracked": np.asarray(rng.integers(100)),
        "scale": rng.normal(size=()).astype(dtype),
        "empty": np.zeros((0, 3), dtype),
    }


def round_of(size: int, dtype=np.float32, seed: int = 0) -> tuple[dict, list[dict], ClientUpdates]:
    sent, clients = model(seed, dtype), [model(seed + 1 + k, dtype) for k in range(size)]
    replies = [reply(10 + k, state, k + 1) for k, state in enumerate(clients)]
    return sent, clients, ClientUpdates(record(sent), replies)


PARAMETERS = ("conv.weight", "bn.weight", "scale", "empty")


def differences(sent: dict, clients: list[dict], name: str) -> np.ndarray:
    start = sent[name].astype(np.float64)
    return np.stack([(state[name].astype(np.float64) - start).ravel() for state in clients])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("block_bytes", [1, updates._BLOCK_BYTES])
def test_gramians_equal_the_stacked_matrix(monkeypatch, dtype, block_bytes):
    monkeypatch.setattr(updates, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(updates, "_MIN_BLOCK_WIDTH", 5)
    sent, clients, seen = round_of(3, dtype)
    assert seen.parameters == PARAMETERS
    assert seen.sizes.tolist() == [108, 7, 1, 0]
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    for name, gramian in zip(seen.parameters, seen.gramians, strict=True):
        matrix = differences(sent, clients, name)
        np.testing.assert_allclose(gramian.numpy(), matrix @ matrix.T, rtol=tolerance, atol=tolerance)
    whole = np.concatenate([differences(sent, clients, name) for name in PARAMETERS], axis=1)
    np.testing.assert_allclose(seen.gramian.numpy(), whole @ whole.T, rtol=tolerance, atol=tolerance)
    assert seen.gramian.dtype == torch.float64


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("per_tensor", [False, True])
def test_combine_by_the_definition(dtype, per_tensor):
    sent, clients, seen = round_of(3, dtype)
    rng = np.random.default_rng(5)
    combination = torch.from_numpy(rng.normal(size=(4, 3) if per_tensor else 3))
    convex = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    result = seen.combine(combination, convex=convex, learning_rate=0.5)
    new = numpy_state(result)
    assert list(new) == list(sent)
    tolerance = {np.float16: 5e-3, np.float32: 1e-6, np.float64: 1e-14}[dtype]
    for row, name in enumerate(PARAMETERS):
        c = (combination[row] if per_tensor else combination).numpy()
        expected = sent[name].ravel() + 0.5 * (c @ differences(sent, clients, name))
        np.testing.assert_allclose(new[name].ravel(), expected, rtol=tolerance, atol=tolerance)
    for name in ("bn.running_mean", "bn.running_var"):
        expected = sum(w * state[name].astype(float) for w, state in zip(convex.tolist(), clients, strict=True))
        np.testing.assert_allclose(new[name], expected, rtol=tolerance, atol=tolerance)
    assert new["bn.num_batches_tracked"] == max(state["bn.num_batches_tracked"] for state in clients)
    for name, value in sent.items():
        assert (new[name].dtype, new[name].shape) == (value.dtype, value.shape)
        assert (result[name].dtype, result[name].shape) == (str(value.dtype), value.shape)
        assert Array(new[name]).data == result[name].data  # the very bytes that Flower would write


def test_a_small_step_survives_large_weights():
    # Seven clients move by one unit in the last place; 1/7 of each weight summed up would round that away.
    sent = {"w": np.linspace(1000, 3000, 101, dtype=np.float32)}
    moved = {"w": np.nextafter(sent["w"], np.float32(np.inf))}
    seen = ClientUpdates(record(sent), [reply(k, moved) for k in range(7)])
    new = numpy_state(seen.combine(seen.shares, convex=seen.shares))["w"]
    assert np.array_equal(new, moved["w"])
    assert not np.array_equal(sum(moved["w"] * np.float32(1 / 7) for _ in range(7)), moved["w"])


@settings(deadline=None, max_examples=50)
@given(
    variances=st.lists(st.floats(2.0**-100, 1e4, width=32), min_size=2, max_size=4),
    start=st.floats(0.125, 1e4, width=32),
)
def test_running_variances_stay_positive(variances, start):
    sent = {"bn.running_var": np.array([start], np.float32), "w": np.zeros(1, np.float32)}
    replies = [
        reply(k, {"bn.running_var": np.array([v], np.float32), "w": np.ones(1, np.float32)})
        for k, v in enumerate(variances)
    ]
    seen = ClientUpdates(record(sent), replies)
    combination = torch.linspace(-3, 5, len(variances), dtype=torch.float64)
    new = numpy_state(seen.combine(combination, convex=seen.shares, learning_rate=3.0))["bn.running_var"]
    assert min(variances) * 0.999 <= new[0] <= max(variances) * 1.001
    assert new[0] > 0


def test_replies_are_never_modified():
    sent, clients = model(0), [model(1), model(2)]
    replies = [reply(k, state) for k, state in enumerate(clients)]
    seen = ClientUpdates(record(sent), replies)
    seen.combine(torch.ones(2, dtype=torch.float64), convex=seen.shares)
    assert seen.gramian.isfinite().all()
    for message, state in zip(replies, clients, strict=True):
        after = numpy_state(message.content["arrays"])
        assert all(np.array_equal(after[name], state[name]) for name in state)
    assert not npy.flat(replies[0].content["arrays"]["scale"]).flags.writeable


def test_views_share_the_bytes_of_the_message():
    array = Array(np.arange(6.0).reshape(2, 3))
    view = npy.flat(array)
    assert view.tolist() == [0, 1, 2, 3, 4, 5]
    assert np.shares_memory(view, np.frombuffer(array.data, np.uint8))


def test_fortran_order_is_read_in_c_order():
    matrix = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    assert npy.header(Array(matrix)).fortran_order
    assert npy.flat(Array(matrix)).tolist() == [0, 1, 2, 3, 4, 5]
    seen = ClientUpdates(record({"w": np.zeros((2, 3))}), [reply(1, {"w": matrix})])
    one = torch.ones(1, dtype=torch.float64)
    assert numpy_state(seen.combine(one, convex=one))["w"].tolist() == matrix.tolist()


def test_bytes_that_are_no_npy_file_are_refused():
    with pytest.raises(ValueError, match="npy"):
        npy.header(Array(dtype="float32", shape=(1,), stype=npy.STYPE, data=b"hello"))
    with pytest.raises(ValueError, match="do not hold"):
        npy.header(Array(dtype="float32", shape=(2,), stype=npy.STYPE, data=Array(np.ones(2)).data[:-1]))
    with pytest.raises(ValueError, match="pickle"):
        npy.header(Array(dtype="float32", shape=(2,), stype="pickle", data=b""))


def test_names_order_the_replies():
    sent = {"w": np.zeros(2, np.float32)}
    replies = [reply(node, {"w": np.full(2, node, np.float32)}, node) for node in (3, 1, 2)]
    seen = ClientUpdates(record(sent), replies, client_names={1: "lab", 2: "clinic", 3: "arena"})
    assert seen.names == ("arena", "clinic", "lab")
    assert seen.examples.tolist() == [3.0, 2.0, 1.0]
    assert ClientUpdates(record(sent), replies).names == ("1", "2", "3")


@pytest.mark.parametrize(
    ("state", "metrics", "message"),
    [
        ({"w": np.zeros(3, np.float32)}, 1, r"client 'lab', tensor 'w'.*\(2,\)"),
        ({"w": np.zeros(2)}, 1, "client 'lab', tensor 'w'.*float32"),
        ({"v": np.zeros(2, np.float32)}, 1, r"client 'lab'.*\['w'\].*\['v'\]"),
        ({"w": np.zeros(2, np.float32)}, {"loss": 1.0}, "client 'lab'.*num-examples"),
        ({"w": np.zeros(2, np.float32)}, {"num-examples": float("nan")}, "client 'lab'.*nan"),
        ({"w": np.zeros(2, np.float32)}, {"num-examples": -1}, "client 'lab'.*-1"),
        ({"w": np.zeros(2, np.float32)}, 0, "0 for every client"),
    ],
)
def test_a_reply_that_does_not_fit_names_its_client(state, metrics, message):
    with pytest.raises(ValueError, match=message):
        ClientUpdates(record({"w": np.zeros(2, np.float32)}), [reply(1, state, metrics)], client_names={1: "lab"})


def test_two_updates_of_one_client_stand_side_by_side():
    sent = {"w": np.zeros(2, np.float32)}
    values = [(3, [1, 0]), (10, [2, 0]), (3, [0, 1]), (3, [0, 4])]
    replies = [reply(node, {"w": np.array(value, np.float32)}, 1) for node, value in values]
    seen = ClientUpdates(record(sent), replies, client_names={3: "lab", 10: "clinic"})
    assert seen.names == ("clinic", "lab", "lab", "lab")
    assert seen.labels == ("clinic", "lab", "lab#2", "lab#3")
    assert seen.gramian.tolist() == [[4, 2, 0, 0], [2, 1, 0, 0], [0, 0, 1, 4], [0, 0, 4, 16]]  # in the order given


def test_a_shift_moves_the_parameters_alone():
    sent, _, seen = round_of(2)
    shift = {name: torch.full(sent[name].shape, 3.0) for name in PARAMETERS}
    halves = torch.tensor([0.5, 0.5], dtype=torch.float64)
    plain = numpy_state(seen.combine(halves, convex=halves, learning_rate=0.5))
    moved = numpy_state(seen.combine(halves, convex=halves, learning_rate=0.5, shift=shift))
    for name in sent:
        np.testing.assert_allclose(moved[name], plain[name] + (1.5 if name in PARAMETERS else 0), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_rule_by_coordinates_by_the_definition(dtype):
    # Three values a coordinate: the largest of the updates for parameters, of the values themselves for statistics.
    sent, clients, seen = round_of(3, dtype)
    new = numpy_state(seen.reduce(lambda values: values.max(axis=0), learning_rate=0.5))
    tolerance = {np.float16: 5e-3, np.float32: 1e-6, np.float64: 1e-14}[dtype]
    for name, value in sent.items():
        largest = np.max([state[name] for state in clients], axis=0)
        expected = value + 0.5 * (largest - value) if name in PARAMETERS else largest
        np.testing.assert_allclose(new[name], expected, rtol=tolerance, atol=tolerance)
        assert (new[name].dtype, new[name].shape) == (value.dtype, value.shape)


def test_weighted_sums_by_the_definition(monkeypatch):
    monkeypatch.setattr(updates, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(updates, "_MIN_BLOCK_WIDTH", 5)
    sent, clients, seen = round_of(3, np.float16)
    sums = seen.weighted_sum(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    assert list(sums) == list(PARAMETERS)
    for name in PARAMETERS:
        expected = np.array([1.0, -2.0, 0.5]) @ differences(sent, clients, name)
        np.testing.assert_allclose(sums[name].numpy().ravel(), expected, rtol=1e-5, atol=1e-5)
        assert (sums[name].dtype, tuple(sums[name].shape)) == (torch.float32, sent[name].shape)
