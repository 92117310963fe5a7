import json
import math
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from federation import aggregate, numpy_state, record, reply, started
from hypothesis import given, settings
from hypothesis import strategies as st
from torchjd import aggregation

from strategies import ConflictAverse, FedGH
from strategies.conflict_averse import PREFERRING, WEIGHTINGS

needs_ecos = pytest.mark.skipif(find_spec("ecos") is None, reason="needs ecos, which has no wheel for this Python")
EACH = [*(name for name in WEIGHTINGS if name != "NashMTL"), pytest.param("NashMTL", marks=needs_ecos)]

ZERO = {"w": np.zeros(2)}
RIGHT, LEFT_UP = {"w": np.array([1.0, 0.0])}, {"w": np.array([-1.0, 1.0])}
LONG, UP = {"w": np.array([2.0, 0.0])}, {"w": np.array([0.0, 1.0])}
SPREAD = {1: ({"w": np.array([2.0, 1.0])}, 1), 2: ({"w": np.array([-1.0, 3.0])}, 3)}


def c_of(weighting, first, second, examples=(1, 1), **options):
    """The weights of two clients on the rule's own scale."""
    rule = ConflictAverse(weighting=weighting, scale="none", **options)
    aggregate(rule, ZERO, {1: (first, examples[0]), 2: (second, examples[1])})
    return list(rule.diagnostics["c"].values())


# Two clients by hand. Conflicting: Δ_1 = (1, 0), Δ_2 = (-1, 1), with n = (1, 3), so p = (1/4, 3/4) and
# D = diag(1/2, 3/2). Orthogonal: Δ_1 = (2, 0), Δ_2 = (0, 1), with n = (1, 1), so D = 1 and G = diag(4, 1).


def test_upgrad_by_hand():
    # Each p_k Δ_k is projected onto the cone of steps that no client objects to: Δ_1 becomes (1/2, 1/2) = Δ_1 + Δ_2/2,
    # Δ_2 becomes (0, 1) = Δ_2 + Δ_1. c = (1/4 + 3/4, 1/8 + 3/4). TorchJD adds 1e-4 to the diagonal.
    assert c_of("UPGrad", RIGHT, LEFT_UP, (1, 3)) == pytest.approx([1.0, 0.875], abs=1e-3)


def test_dualproj_by_hand():
    # The mean (-1/2, 3/4) is projected onto that cone: (0, 3/4) = 3/4 Δ_1 + 3/4 Δ_2.
    assert c_of("DualProj", RIGHT, LEFT_UP, (1, 3)) == pytest.approx([0.75, 0.75], abs=1e-3)


def test_aligned_mtl_by_hand():
    # B = √λ_min V Λ^(-1/2) Vᵀ = diag(1/2, 1), c = B p.
    assert c_of("AlignedMTL", LONG, UP) == pytest.approx([0.25, 0.5])
    assert c_of("AlignedMTL", LONG, UP, (1, 3)) == pytest.approx([0.125, 0.75])


def test_mgda_by_hand():
    # The shortest vector between (1/2, 0) and (-3/2, 3/2) has (9/2 + 3/4) / (1/4 + 9/2 + 3/2) = 0.84 of the first:
    # c = D (0.84, 0.16).
    assert c_of("MGDA", RIGHT, LEFT_UP, (1, 3)) == pytest.approx([0.42, 0.24])


def test_pcgrad_by_hand():
    # With D: (1/2) (1/2, 1/2) + (3/2) (0, 1), the sum of projections: K = 2 times FedGH's weights.
    assert c_of("PCGrad", RIGHT, LEFT_UP, (1, 3)) == pytest.approx([2.0, 1.75])


def test_imtlg_by_hand():
    # G⁺ (|Δ_1|, |Δ_2|) = (2/4, 1/1), divided by its sum: both projections of the step onto a client are equal.
    assert c_of("IMTLG", LONG, UP) == pytest.approx([1 / 3, 2 / 3])


def test_fairgrad_by_hand():
    # alpha = 1: G c = 1/c, so c = (1/2, 1). alpha = 2: G c = c^(-1/2), so c_1 = 4^(-2/3) and c_2 = 1.
    assert c_of("FairGrad", LONG, UP) == pytest.approx([0.5, 1.0], rel=1e-4)
    assert c_of("FairGrad", LONG, UP, options={"alpha": 2.0}) == pytest.approx([4 ** (-2 / 3), 1.0], rel=1e-4)


@needs_ecos
def test_nash_mtl_by_hand():
    # The bargain G c = 1/c, as FairGrad with alpha = 1, then shortened from |(1, 1)| to max_norm.
    assert c_of("NashMTL", LONG, UP, options={"max_norm": 0.0}) == pytest.approx([0.5, 1.0], rel=1e-2)
    length = 1 / math.sqrt(2)
    assert c_of("NashMTL", LONG, UP) == pytest.approx([0.5 * length, length], rel=1e-2)


def test_cagrad_by_hand():
    # Orthogonal and of one length: the worst mixture is the mean g_0, and the step is g_0 + c |g_0| g_0/|g_0|.
    one = {"w": np.array([1.0, 0.0])}
    assert c_of("CAGrad", one, UP) == pytest.approx([0.75, 0.75], rel=1e-4)
    assert c_of("CAGrad", one, UP, options={"c": 0.0}) == pytest.approx([0.5, 0.5], rel=1e-4)


def test_gradvac_by_hand():
    # Round 1: targets 0, as PCGrad. Each pair's cosine -1/√2 moves its target to -1/(2√2).
    rule = ConflictAverse(weighting="GradVac", scale="none")
    clients = {1: (RIGHT, 1), 2: (LEFT_UP, 1)}
    aggregate(rule, ZERO, clients)
    assert list(rule.diagnostics["c"].values()) == pytest.approx([2.0, 1.5], rel=1e-6)
    target = -1 / (2 * math.sqrt(2))
    assert rule.state_dict()["targets"]["model"].tolist() == [
        pytest.approx([0.0, target]),
        pytest.approx([target, 0.0]),
    ]
    # Round 2: |Δ_i| (τ √(1-φ²) - φ √(1-τ²)) / (|Δ_j| √(1-τ²)) of the other, φ = -1/√2 and τ the target.
    aggregate(rule, ZERO, clients, server_round=2)
    turn = target * math.sqrt(0.5) / math.sqrt(1 - target**2) + math.sqrt(0.5)
    expected = [1 + math.sqrt(2) * turn, 1 + turn / math.sqrt(2)]
    assert list(rule.diagnostics["c"].values()) == pytest.approx(expected, rel=1e-6)


def random_clients(seed, size, dimension=40, spread=1.0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {
        k: (
            {
                "a": (spread * rng.normal(size=dimension)).astype(dtype),
                "b": (spread * rng.normal(size=3)).astype(dtype),
            },
            int(rng.integers(1, 9)),
        )
        for k in range(size)
    }


def nothing(clients):
    return {name: np.zeros_like(value) for name, value in next(iter(clients.values()))[0].items()}


@pytest.mark.parametrize("granularity", ["model", "layer"])
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 7))
def test_pcgrad_is_fedgh_weighted_by_examples(granularity, seed, size):
    clients = random_clients(seed, size)
    options = {"granularity": granularity, "seed": seed}
    ours = aggregate(ConflictAverse(weighting="PCGrad", **options), nothing(clients), clients)
    expected = aggregate(FedGH(weighting="examples", rescale="norm", **options), nothing(clients), clients)
    for name in ours:
        np.testing.assert_allclose(ours[name], expected[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("weighting", sorted(WEIGHTINGS.keys() - {"NashMTL", "PCGrad", "GradVac"}))
def test_equal_shares_are_torchjds_own_weights(weighting):
    # At a trace near 1 TorchJD takes no Gramian for zero: what it says of the raw one, scaled by nothing.
    clients = {k: (state, 5) for k, (state, _) in random_clients(3, 4, spread=0.1).items()}
    rule = ConflictAverse(weighting=weighting, scale="none")
    aggregate(rule, nothing(clients), clients)
    matrix = torch.tensor(np.stack([np.concatenate(list(state.values())) for state, _ in clients.values()]))
    theirs = getattr(aggregation, f"{weighting}Weighting")(**WEIGHTINGS[weighting])(matrix @ matrix.T)
    np.testing.assert_allclose(list(rule.diagnostics["c"].values()), theirs, rtol=1e-3)


@pytest.mark.parametrize("weighting", PREFERRING)
def test_the_shares_are_the_preference(weighting):
    clients = random_clients(3, 4, spread=0.1)
    rule = ConflictAverse(weighting=weighting, scale="none")
    aggregate(rule, nothing(clients), clients)
    matrix = torch.tensor(np.stack([np.concatenate(list(state.values())) for state, _ in clients.values()]))
    p = torch.tensor([float(n) for _, n in clients.values()], dtype=torch.float64)
    theirs = getattr(aggregation, f"{weighting}Weighting")(pref_vector=p / p.sum())(matrix @ matrix.T)
    np.testing.assert_allclose(list(rule.diagnostics["c"].values()), theirs, rtol=1e-3)


@pytest.mark.parametrize("weighting", EACH)
def test_small_updates_are_weighted_like_large_ones(weighting):
    # A Gramian of trace 1e-8 is what a small learning rate makes; some rules of TorchJD take it for zero.
    found = []
    for spread in (1.0, 1e-5):
        rule = ConflictAverse(weighting=weighting, granularity="layer")
        clients = random_clients(5, 3, spread=spread)
        new = aggregate(rule, nothing(clients), clients)
        found.append(np.concatenate([value / spread for value in new.values()]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("weighting", EACH)
@pytest.mark.parametrize("granularity", ["model", "layer"])
def test_the_norm_is_that_of_the_weighted_mean(weighting, granularity):
    clients = random_clients(7, 3)
    rule = ConflictAverse(weighting=weighting, granularity=granularity)
    new = aggregate(rule, nothing(clients), clients)
    total = sum(n for _, n in clients.values())
    mean = {name: sum(n / total * state[name] for state, n in clients.values()) for name in new}
    parts = [["a"], ["b"]] if granularity == "layer" else [["a", "b"]]
    for part in parts:
        lengths = [np.linalg.norm(np.concatenate([state[name] for name in part])) for state in (new, mean)]
        assert lengths[0] == pytest.approx(lengths[1])
    assert rule.diagnostics["psi"] == {str(k): pytest.approx(n / total) for k, (_, n) in clients.items()}


@pytest.mark.parametrize("weighting", EACH)
def test_arrival_order_and_the_global_generator_change_no_bit(weighting):
    clients, results = random_clients(9, 4), []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        torch.manual_seed(order[0])
        before = torch.get_rng_state()
        rule = ConflictAverse(weighting=weighting, granularity="layer", seed=1)
        aggregate(rule, nothing(clients), {k: clients[k] for k in order})
        assert torch.equal(torch.get_rng_state(), before)
        results.append(rule.diagnostics)
    assert results[0] == results[1]
    json.dumps(results[0], allow_nan=False)


@pytest.mark.parametrize("weighting", EACH)
def test_one_client_zero_updates_and_equal_ones(weighting):
    clients = random_clients(11, 3)
    sent = nothing(clients)
    alone = aggregate(ConflictAverse(weighting=weighting), sent, {0: clients[0]})
    np.testing.assert_allclose(alone["a"], clients[0][0]["a"], rtol=1e-9)
    same = aggregate(ConflictAverse(weighting=weighting), sent, dict.fromkeys(range(3), clients[0]))
    np.testing.assert_allclose(same["a"], clients[0][0]["a"], rtol=1e-6)
    still = aggregate(ConflictAverse(weighting=weighting), sent, dict.fromkeys(range(3), (sent, 2)))
    assert not still["a"].any()
    one_still = aggregate(ConflictAverse(weighting=weighting), sent, {**clients, 1: (sent, 2)})
    assert np.isfinite(one_still["a"]).all()


def test_running_statistics_are_averaged_by_examples():
    sent = {"w": np.zeros(2), "bn.running_var": np.ones(1)}
    clients = {
        1: ({"w": np.array([1.0, 0.0]), "bn.running_var": np.array([1.0])}, 1),
        2: ({"w": np.array([-1.0, 1.0]), "bn.running_var": np.array([2.0])}, 3),
    }
    new = aggregate(ConflictAverse(weighting="PCGrad", scale="none"), sent, clients)
    assert new["bn.running_var"].tolist() == [1.75]


@pytest.mark.parametrize("granularity", ["model", "layer"])
def test_gradvac_goes_on_bit_for_bit_where_it_was(granularity):
    one, other = (ConflictAverse(weighting="GradVac", granularity=granularity) for _ in range(2))
    clients = random_clients(1, 4)
    aggregate(one, nothing(clients), clients)
    state = one.state_dict()
    other.load_state_dict(state)
    later = random_clients(2, 4)
    new, twin = (aggregate(rule, nothing(later), later, server_round=2) for rule in (one, other))
    assert all(np.array_equal(new[name], twin[name]) for name in new)
    forgotten = ConflictAverse(weighting="GradVac", granularity=granularity)
    forgotten.load_state_dict(forgotten.state_dict())
    fresh = aggregate(forgotten, nothing(later), later, server_round=2)
    assert not np.array_equal(fresh["a"], new["a"])
    assert not torch.equal(next(iter(state["targets"].values())), next(iter(one.state_dict()["targets"].values())))


def test_gradvac_refuses_other_clients():
    rule = ConflictAverse(weighting="GradVac")
    aggregate(rule, ZERO, SPREAD)
    with pytest.raises(ValueError, match="round 2 has 1, the first had 1, 2"):
        aggregate(rule, ZERO, {1: SPREAD[1]}, server_round=2)
    twice = ConflictAverse(weighting="GradVac")
    aggregate(twice, ZERO, SPREAD)
    with pytest.raises(ValueError, match="round 2 has 1, 1, 2"):
        states = [(1, RIGHT), (1, LEFT_UP), (2, RIGHT)]
        twice.aggregate(2, record(ZERO), [reply(k, state) for k, state in states])


@pytest.mark.parametrize("weighting", [name for name in EACH if name != "GradVac"])
def test_the_others_remember_nothing(weighting):
    rule = ConflictAverse(weighting=weighting, granularity="layer")
    for size in (3, 2, 4):  # the number of clients may change
        clients = random_clients(size, size)
        new = aggregate(rule, nothing(clients), clients)
        fresh = aggregate(ConflictAverse(weighting=weighting, granularity="layer"), nothing(clients), clients)
        assert all(np.array_equal(new[name], fresh[name]) for name in new)
    assert rule.state_dict() == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weighting": "Krum"}, "weighting is one of AlignedMTL, CAGrad"),
        ({"granularity": "tensor"}, "granularity is one of model, layer"),
        ({"scale": "sum"}, "scale is one of norm, none"),
        ({"weighting": "CAGrad", "options": {"alpha": 1}}, "options alpha are not CAGrad's, which has c, norm_eps"),
        ({"weighting": "CAGrad", "options": {"c": -1.0}}, "c must be non-negative"),
        ({"weighting": "UPGrad", "options": {"pref_vector": [1]}}, "pref_vector"),
        ({"weighting": "PCGrad", "options": {"c": 1}}, "PCGrad's, which has none"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        ConflictAverse(**options)


def test_torchjd_is_imported_by_whom_it_serves_alone():
    code = "import sys, strategies; strategies.FedGH(); print('torchjd' in sys.modules, 'cvxpy' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "False False"


@pytest.mark.parametrize("weighting", EACH)
def test_updates_that_are_not_finite_are_an_error(weighting):
    broken = {"w": np.array([math.nan, 1.0])}
    with pytest.raises(ValueError, match="not finite"):
        aggregate(ConflictAverse(weighting=weighting), ZERO, {1: (RIGHT, 1), 2: (broken, 1)})


def test_what_a_solver_raises_is_told_in_one_line():
    rule = ConflictAverse(weighting="FairGrad", options={"max_iters": 0})
    with pytest.raises(ValueError, match=r"FairGrad found no weights for 2 updates: .*max_nfev"):
        aggregate(rule, ZERO, SPREAD)


def test_dtypes_are_those_that_were_sent():
    clients = random_clients(0, 3, dtype=np.float16)
    rule = started(ConflictAverse(granularity="layer"), nothing(clients), list(clients))
    arrays, _ = rule.aggregate_train(1, [reply(k, state, n) for k, (state, n) in clients.items()])
    assert {value.dtype for value in numpy_state(arrays).values()} == {np.dtype(np.float16)}
