import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.finch import finch


def at(*degrees: float) -> torch.Tensor:
    """Unit vectors in the plane, by angle."""
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def test_clusters_by_hand():
    # First neighbours on the circle, by angle: 0 -> 10, 10 -> 0, 90 -> 100, 100 -> 90, 20 -> 10.
    # So 0 - 10 - 20 and 90 - 100, numbered by their first members.
    assert finch(at(90, 0, 10, 100, 20)) == [0, 1, 1, 0, 1]


def test_length_does_not_count():
    lengths = torch.tensor([[1e-30], [5.0], [1e25], [1.0], [300.0]])
    assert finch(at(90, 0, 10, 100, 20) * lengths) == [0, 1, 1, 0, 1]


def test_a_shared_neighbour_links():
    # -20 -> 0, 15 -> 0, 0 -> 15: 15 and -20 share their first neighbour, 0.
    assert finch(at(-20, 15, 0, 180, 190)) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_up_to_three_are_one_cluster(size):
    assert finch(at(*[0, 170, 250][:size])) == [0] * size


def test_ties_go_to_the_lowest_index():
    # 45 lies in the middle of 0 and 90: it goes to 0, which comes first, not to 90.
    assert finch(at(0, 90, 45, -10, 100)) == [0, 1, 0, 0, 1]
    assert finch(at(90, 0, 45, 100, -10)) == [0, 1, 0, 0, 1]


def test_a_zero_vector_is_equally_far_from_all():
    # At distance 1 from everyone it goes to the first, and nobody who has a nearer one goes to it.
    points = torch.cat([at(0, 10, 80, 90), torch.zeros(1, 2)])
    assert finch(points) == [0, 0, 1, 1, 0]
    assert finch(torch.zeros(3, 2)) == [0, 0, 0]


def by_the_definition(points: np.ndarray) -> set[frozenset[int]]:
    """All three kinds of links written out, and the components by merging sets: the oracle."""
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    distances = 1 - unit @ unit.T
    size = len(points)
    nearest = [min((j for j in range(size) if j != i), key=lambda j: distances[i, j]) for i in range(size)]
    clusters = [{i} for i in range(size)]
    for i in range(size):
        for j in range(size):
            if j == nearest[i] or i == nearest[j] or nearest[i] == nearest[j]:
                merged = clusters[i] | clusters[j]
                for member in merged:
                    clusters[member] = merged
    return {frozenset(cluster) for cluster in clusters}


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 30), dimension=st.integers(2, 5))
def test_equals_the_definition(seed, size, dimension):
    points = np.random.default_rng(seed).normal(size=(size, dimension))
    found = finch(torch.from_numpy(points))
    clusters = {frozenset(i for i in range(size) if found[i] == number) for number in found}
    assert clusters == by_the_definition(points)
    assert min(map(len, clusters)) > 1
    firsts = [found.index(number) for number in range(max(found) + 1)]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(0, 3), torch.zeros(3, 0)])
def test_other_shapes_are_refused(bad):
    with pytest.raises(ValueError, match=r"shape \(K, D\)"):
        finch(bad)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        finch(torch.tensor([[1.0], [math.nan]]))
