import math

import pytest
import torch

from fedgh_app.pose.models.heatmaps import render_gaussian, supervised, to_heatmap, to_input


def one(x, y):
    return torch.tensor([[[x, y]]], dtype=torch.float32)


SEEN = torch.ones(1, 1, dtype=torch.bool)


def test_pixel_centres_of_input_and_heatmap_meet_as_documented():
    # Four input pixels 0..3 make heatmap pixel 0, whose centre so is 1.5.
    assert to_input(one(0, 2), (64, 64), (16, 16)).tolist() == [[[1.5, 9.5]]]
    assert to_heatmap(one(1.5, 9.5), (64, 64), (16, 16)).tolist() == [[[0.0, 2.0]]]


def test_gaussian_by_hand():
    # Heatmap 64 wide: sigma is 2 px. The keypoint is the centre of heatmap pixel (10, 20).
    heatmap = render_gaussian(one(41.5, 81.5), SEEN, (256, 256), (64, 64))[0, 0]
    assert heatmap.shape == (64, 64)
    assert heatmap[20, 10] == 1
    assert heatmap[20, 12].item() == pytest.approx(math.exp(-4 / 8))
    assert heatmap[23, 11].item() == pytest.approx(math.exp(-10 / 8))


def test_sigma_scales_with_the_width_of_the_map():
    heatmap = render_gaussian(one(5.5, 5.5), SEEN, (64, 64), (16, 16))[0, 0]  # heatmap pixel (1, 1), sigma 0.5
    assert heatmap[1, 2].item() == pytest.approx(math.exp(-2))


def test_rendering_equals_a_loop_over_pixels():
    generator = torch.Generator().manual_seed(0)
    keypoints = torch.rand(3, 4, 2, generator=generator) * 70 - 3
    visible = torch.rand(3, 4, generator=generator) < 0.7
    result = render_gaussian(keypoints, visible, (48, 64), (12, 16), sigma=3.0)
    sigma = 3.0 * 16 / 64
    for b in range(3):
        for j in range(4):
            x, y = ((keypoints[b, j] + 0.5) / 4 - 0.5).tolist()
            near = -3 * sigma <= x <= 15 + 3 * sigma and -3 * sigma <= y <= 11 + 3 * sigma
            for v in range(12):
                for u in range(16):
                    expected = math.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * sigma**2))
                    expected *= bool(visible[b, j]) and near
                    assert result[b, j, v, u].item() == pytest.approx(expected, abs=1e-6)


def test_a_keypoint_without_target_has_an_empty_map_whatever_its_coordinates():
    keypoints = torch.tensor([[[math.nan, 3.0], [10.0, 10.0], [-100.0, 5.0], [math.inf, 1.0]]])
    visible = torch.tensor([[False, False, True, True]])
    heatmaps = render_gaussian(keypoints, visible, (64, 64), (16, 16))
    assert torch.equal(heatmaps, torch.zeros(1, 4, 16, 16))


def test_supervision_ends_three_sigma_outside_the_map():
    # Heatmap 16 wide: sigma 0.5; the border lies at heatmap -1.5, which is input -4.5, and at 16.5 or 67.5.
    x = torch.tensor([-4.6, -4.4, 67.4, 67.6])
    keypoints = torch.stack((x, torch.full((4,), 30.0)), -1)[None]
    visible = torch.ones(1, 4, dtype=torch.bool)
    counted = supervised(keypoints, visible, (64, 64), (16, 16))
    assert counted.tolist() == [[False, True, True, False]]
    assert not supervised(keypoints, ~visible, (64, 64), (16, 16)).any()
