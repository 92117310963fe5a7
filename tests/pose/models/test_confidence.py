import math

import torch

from fedgh_app.pose.models.confidence import MassAtPeak, peak_height
from fedgh_app.pose.models.heatmaps import render_gaussian

SIZE = (64, 64)


def _logits(x: float, y: float) -> torch.Tensor:
    """Maps whose softmax is the normalised target of a keypoint at (x, y) of a 64 x 64 input."""
    target = render_gaussian(torch.tensor([[[x, y]]]), torch.ones(1, 1, dtype=torch.bool), SIZE, SIZE)
    return target.clamp(min=1e-30).log()


def test_a_map_that_is_its_target_is_sure_and_a_flat_one_has_the_share_of_the_window() -> None:
    sure = MassAtPeak(sigma=2.0)
    along = [math.exp(-(pixel**2) / 8) for pixel in range(-20, 21)]  # deviation 2, so that the window is 9 pixels wide
    assert abs(sure(_logits(30, 20)).item() - (sum(along[16:25]) / sum(along)) ** 2) < 1e-5
    flat = sure(torch.zeros(1, 1, 64, 64))
    assert abs(flat.item() - 5 * 5 / 64**2) < 1e-6  # the first pixel is the peak, so the window is cut at the corner


def test_two_equal_peaks_share_the_mass_and_beta_decides_between_unequal_ones() -> None:
    two = torch.logaddexp(_logits(12, 12), _logits(50, 50))
    alone = MassAtPeak()(_logits(12, 12))
    assert torch.allclose(MassAtPeak()(two), alone / 2, atol=1e-3)
    maps = torch.full((1, 1, 16, 16), -50.0)
    maps[..., 3, 3], maps[..., 12, 12] = 0.0, 1.0
    for beta in (0.5, 4.0):
        expected = 1 / (1 + math.exp(-beta))
        assert abs(MassAtPeak(beta=beta)(maps).item() - expected) < 1e-6


def test_the_height_of_a_gaussian_is_its_confidence() -> None:
    maps = torch.tensor([[[[0.1, 0.6], [0.2, 0.0]], [[-1.0, -2.0], [-3.0, -1.5]], [[0.5, 1.3], [0.0, 0.0]]]])
    assert torch.equal(peak_height(maps), torch.tensor([[0.6, 0.0, 1.0]]))
