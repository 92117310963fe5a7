import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchjd.aggregation import PCGradWeighting

from strategies.gramian import conflicts
from strategies.projection import harmonize

F64 = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def updates(seed: int, size: int, dimension: int = 7) -> torch.Tensor:
    return torch.randn(size, dimension, dtype=F64, generator=torch.Generator().manual_seed(seed))


def projected_in_vector_space(vectors, threshold, generator):
    """PCGrad and GradVac as the papers write them, on the vectors themselves: the oracle."""
    result = []
    for i in range(len(vectors)):
        order = range(len(vectors))
        if generator is not None:
            order = torch.randperm(len(vectors), generator=generator).tolist()
        v = vectors[i].clone()
        for j in order:
            u = vectors[j]
            if j == i or not v.norm() > 0 or not u.norm() > 0:
                continue
            phi = float(v @ u / (v.norm() * u.norm()))
            if phi < threshold:
                if threshold == 0:
                    v = v - (v @ u) / (u @ u) * u
                else:
                    scale = threshold * math.sqrt(max(1 - phi**2, 0)) - phi * math.sqrt(1 - threshold**2)
                    v = v + v.norm() * scale / (u.norm() * math.sqrt(1 - threshold**2)) * u
        result.append(v)
    return torch.stack(result)


def harmonised_pairs(vectors, generator):
    pairs = [(i, j) for i in range(len(vectors)) for j in range(i + 1, len(vectors))]
    if generator is not None:
        pairs = [pairs[n] for n in torch.randperm(len(pairs), generator=generator).tolist()]
    vectors = vectors.clone()
    for i, j in pairs:
        a, b = vectors[i].clone(), vectors[j].clone()
        s = a @ b
        if s < 0:
            vectors[i], vectors[j] = a - s / (b @ b) * b, b - s / (a @ a) * a
    return vectors


def test_two_conflicting_clients_by_hand():
    # Δ_1 = (1, 0), Δ_2 = (-1, 1): <Δ_1, Δ_2> = -1, |Δ_2|² = 2.
    # Δ_1' = Δ_1 + Δ_2 / 2 = (1/2, 1/2) and Δ_2' = Δ_2 + Δ_1 = (0, 1).
    # ψ = (1/4, 3/4): c = (1/4 + 3/4, 1/8 + 3/4), and 1/4 Δ_1' + 3/4 Δ_2' = (1/8, 7/8).
    vectors = tensor([1.0, 0.0], [-1.0, 1.0])
    c = harmonize(vectors @ vectors.T, tensor(0.25, 0.75))
    assert c.tolist() == [1.0, 0.875]
    assert (c @ vectors).tolist() == [0.125, 0.875]


def test_visiting_order_counts_and_defaults_to_index_order():
    # Δ_3 = (-1, -1) against Δ_1 = (1, 0), Δ_2 = (1, 1): by Δ_1 first it becomes (0, -1), then by Δ_2
    # (1/2, -1/2). By Δ_2 first it is the zero vector at once.
    vectors = tensor([1.0, 0.0], [1.0, 1.0], [-1.0, -1.0])
    c = harmonize(vectors @ vectors.T, tensor(0.0, 0.0, 1.0))
    assert (c @ vectors).tolist() == [0.5, -0.5]


def test_pairwise_by_hand():
    # Both change from their old values: Δ_1' = (1/2, 1/2), Δ_2' = (0, 1).
    vectors = tensor([1.0, 0.0], [-1.0, 1.0])
    gramian = vectors @ vectors.T
    assert harmonize(gramian, tensor(1.0, 0.0), scheme="pairwise").tolist() == [1.0, 0.5]
    assert harmonize(gramian, tensor(0.0, 1.0), scheme="pairwise").tolist() == [1.0, 1.0]


@pytest.mark.parametrize("threshold", [-0.5, 0.3, 0.9])
def test_a_threshold_is_the_cosine_that_a_conflicting_pair_ends_with(threshold):
    vectors = tensor([1.0, 0.0], [math.cos(2.5), 2 * math.sin(2.5)])
    first = harmonize(vectors @ vectors.T, tensor(1.0, 0.0), threshold=threshold) @ vectors
    assert torch.cosine_similarity(first, vectors[1], dim=0).item() == pytest.approx(threshold)


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.5])
def test_exactly_opposed_updates_become_the_zero_vector(threshold):
    vectors = tensor([1.0, 2.0], [-2.0, -4.0])
    c = harmonize(vectors @ vectors.T, tensor(0.5, 0.5), threshold=threshold)
    assert (c @ vectors).tolist() == [0.0, 0.0]


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 12),
    dimension=st.integers(1, 9),
    threshold=st.sampled_from([0.0, 0.0, -0.4, 0.2, 0.7]),
    ordered=st.booleans(),
    oddity=st.sampled_from(["none", "zero", "duplicate"]),
)
def test_gram_space_equals_vector_space(seed, size, dimension, threshold, ordered, oddity):
    vectors = updates(seed, size, dimension)
    if oddity == "zero":
        vectors[-1] = 0.0
    elif oddity == "duplicate":
        vectors[-1] = vectors[0]
    weights = torch.rand(size, dtype=F64, generator=torch.Generator().manual_seed(seed + 1))
    generators = [None, None] if ordered else [torch.Generator().manual_seed(seed) for _ in range(2)]
    if dimension == 1 and threshold != 0.0:
        return  # all cosines are ±1: what is left after a step is rounding, in both spaces
    c = harmonize(vectors @ vectors.T, weights, threshold=threshold, generator=generators[0])
    expected = weights @ projected_in_vector_space(vectors, threshold, generators[1])
    torch.testing.assert_close(c @ vectors, expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 9), ordered=st.booleans())
def test_pairwise_equals_vector_space(seed, size, ordered):
    vectors = updates(seed, size)
    weights = torch.rand(size, dtype=F64, generator=torch.Generator().manual_seed(seed + 1))
    generators = [None, None] if ordered else [torch.Generator().manual_seed(seed) for _ in range(2)]
    c = harmonize(vectors @ vectors.T, weights, scheme="pairwise", generator=generators[0])
    torch.testing.assert_close(c @ vectors, weights @ harmonised_pairs(vectors, generators[1]))


@pytest.mark.parametrize("size", range(1, 51))
def test_equals_torchjd_with_the_same_visiting_order(size):
    vectors = updates(size, size, dimension=3 + size // 2)
    gramian = vectors @ vectors.T
    ours = harmonize(gramian, torch.ones(size), generator=torch.Generator().manual_seed(size))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(size)
        theirs = PCGradWeighting()(gramian)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 8),
    batch=st.integers(1, 5),
    rule=st.sampled_from([("pcgrad", 0.0), ("pcgrad", 0.3), ("pairwise", 0.0)]),
)
def test_a_batch_is_its_gramians_one_by_one_in_one_order(seed, size, batch, rule):
    scheme, threshold = rule
    vectors = torch.stack([updates(seed + n, size) for n in range(batch)])
    gramians = vectors @ vectors.mT
    weights = torch.rand(size, dtype=F64)

    def run(gramian):
        generator = torch.Generator().manual_seed(seed)
        return harmonize(gramian, weights, threshold=threshold, scheme=scheme, generator=generator)

    torch.testing.assert_close(run(gramians), torch.stack([run(gramian) for gramian in gramians]))


@pytest.mark.parametrize("scheme", ["pcgrad", "pairwise"])
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 10))
def test_without_conflicts_the_weights_come_back(scheme, seed, size):
    vectors = updates(seed, size).abs()
    weights = torch.rand(size, dtype=F64)
    c = harmonize(vectors @ vectors.T, weights, scheme=scheme, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(c, weights)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 8), threshold=st.sampled_from([-0.3, 0.0, 0.3]))
def test_a_zero_update_conflicts_with_nobody(seed, size, threshold):
    vectors = updates(seed, size)
    vectors[1] = 0.0
    others = torch.arange(size) != 1
    weights = torch.rand(size, dtype=F64)
    gramian = vectors @ vectors.T
    c = harmonize(gramian, weights, threshold=threshold)
    without = harmonize(gramian[others][:, others], weights[others], threshold=threshold)
    torch.testing.assert_close(c[others], without)
    assert c[1] == weights[1]
    assert not conflicts(gramian, threshold)[1].any()


def test_all_zero_updates_keep_their_weights():
    weights = tensor(0.2, 0.8)
    for scheme in ("pcgrad", "pairwise"):
        assert torch.equal(harmonize(torch.zeros(2, 2), weights, scheme=scheme), weights)


def test_one_client_keeps_its_weight():
    assert harmonize(tensor([4.0]), tensor(1.0), generator=torch.Generator()).tolist() == [1.0]


def test_arithmetic_is_float64_and_leaves_the_arguments_alone():
    gramian = torch.tensor([[1.0, -1.0], [-1.0, 2.0]])
    before = gramian.clone()
    assert harmonize(gramian, torch.ones(2)).dtype == F64
    assert torch.equal(gramian, before)


@pytest.mark.parametrize(
    ("gramian", "weights", "options", "message"),
    [
        (torch.ones(2, 3), torch.ones(2), {}, "shape"),
        (torch.ones(0, 0), torch.ones(0), {}, "shape"),
        (torch.eye(2), torch.ones(3), {}, "weights have shape"),
        (torch.full((2, 2), math.nan), torch.ones(2), {}, "not finite"),
        (torch.eye(2), torch.tensor([1.0, math.inf]), {}, "not finite"),
        (-torch.eye(2), torch.ones(2), {}, "negative diagonal"),
        (torch.eye(2), torch.ones(2), {"threshold": 1.0}, "threshold"),
        (torch.eye(2), torch.ones(2), {"threshold": math.nan}, "threshold"),
        (torch.eye(2), torch.ones(2), {"scheme": "mgda"}, "scheme"),
        (torch.eye(2), torch.ones(2), {"scheme": "pairwise", "threshold": 0.1}, "pairwise"),
    ],
)
def test_wrong_arguments_are_named(gramian, weights, options, message):
    with pytest.raises(ValueError, match=message):
        harmonize(gramian, weights, **options)
