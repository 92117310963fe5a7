import math

import pytest
import torch

from strategies.gramian import conflicting_fraction, cosines, norm, rescale, summarise_cosines
from strategies.projection import harmonize

F64 = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def test_cosines_and_conflicts_by_hand():
    vectors = tensor([2.0, 0.0], [0.0, 3.0], [-1.0, 1.0], [0.0, 0.0])
    gramian = vectors @ vectors.T
    half = math.sqrt(0.5)
    expected = tensor([1, 0, -half, 0], [0, 1, half, 0], [-half, half, 1, 0], [0, 0, 0, 0])
    torch.testing.assert_close(cosines(gramian), expected)
    assert conflicting_fraction(gramian).item() == pytest.approx(1 / 6)
    assert conflicting_fraction(gramian, 0.5).item() == pytest.approx(2 / 6)
    assert summarise_cosines(gramian).mean == pytest.approx(0.0, abs=1e-15)
    assert summarise_cosines(gramian).smallest == pytest.approx(-half)
    assert summarise_cosines(torch.zeros(2, 2, dtype=F64)) == (None, None)


def test_cosines_survive_tiny_updates():
    vectors = 1e-160 * tensor([1.0, 0.0], [1.0, 1.0])
    assert cosines(vectors @ vectors.T)[0, 1].item() == pytest.approx(math.sqrt(0.5), rel=1e-3)


def test_norm_and_rescale():
    # Σ ψ Δ = (0, 1/2), of length 1/2; after projection (1/4, 3/4), of length √10 / 4.
    vectors = tensor([1.0, 0.0], [-1.0, 1.0])
    gramian, weights = vectors @ vectors.T, tensor(0.5, 0.5)
    c = harmonize(gramian, weights)
    assert norm(gramian, c).item() == pytest.approx(math.sqrt(10) / 4)
    assert norm(gramian, rescale(gramian, c, weights)).item() == pytest.approx(0.5)
    opposed = tensor([1.0], [-1.0])
    assert torch.equal(rescale(opposed @ opposed.T, tensor(1.0, 1.0), weights), tensor(1.0, 1.0))
