import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgh_app.pose.heatmaps import decode, peaks, render_gaussian, supervised, to_heatmap, to_input

SIZES = [((64, 64), (16, 16)), ((256, 192), (64, 48)), ((64, 96), (16, 24))]


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


@given(st.sampled_from(SIZES), st.floats(0, 1), st.floats(0, 1))
def test_decoding_a_rendered_keypoint_returns_it_within_half_a_heatmap_pixel(sizes, across, down):
    (input_size, heatmap_size) = sizes
    scale = input_size[1] / heatmap_size[1]
    keypoint = one(across * input_size[1] - 0.5, down * input_size[0] - 0.5)
    heatmap = render_gaussian(keypoint, SEEN, input_size, heatmap_size)
    found, score = decode(heatmap, input_size)
    assert (found - keypoint).abs().max() <= 0.5 * scale + 1e-3
    # The peak is the pixel in which the keypoint lies (up to ties on the edge between two).
    peak, height = peaks(heatmap)
    assert (to_heatmap(keypoint, input_size, heatmap_size) - peak).abs().max() <= 0.5 + 1e-3
    assert score == height == heatmap.max()


@given(st.floats(4, 59), st.floats(4, 59))
def test_the_quarter_shift_halves_the_worst_error_inside_the_map(x, y):
    # Within a pixel, error <= 0.5; moved 0.25 toward the keypoint's side, <= 0.25 heatmap px = 1 input px.
    found, _ = decode(render_gaussian(one(x, y), SEEN, (64, 64), (16, 16)), (64, 64))
    assert (found - one(x, y)).abs().max() <= 1 + 1e-3


def test_decoding_by_hand_inside_and_on_the_border():
    heatmaps = torch.zeros(1, 5, 4, 4)
    heatmaps[0, 0, 1, 2], heatmaps[0, 0, 1, 3] = 1.0, 0.5  # right neighbour higher
    heatmaps[0, 1, 2, 1], heatmaps[0, 1, 1, 1], heatmaps[0, 1, 2, 0] = 1.0, 0.5, 0.2  # upper and left higher
    heatmaps[0, 2, 0, 3], heatmaps[0, 2, 0, 2] = 1.0, 0.9  # corner: no shift
    heatmaps[0, 3, 0, 1], heatmaps[0, 3, 0, 2] = 1.0, 0.9  # upper border: shift along x only
    heatmaps[0, 4] = -3.0  # flat and negative: the first pixel
    found, scores = decode(heatmaps, (4, 4))
    assert found[0].tolist() == [[2.25, 1.0], [0.75, 1.75], [3.0, 0.0], [1.25, 0.0], [0.0, 0.0]]
    assert scores[0].tolist() == [1, 1, 1, 1, -3]


def test_decoding_equals_a_loop_over_maps():
    heatmaps = torch.randn(4, 3, 7, 9, generator=torch.Generator().manual_seed(1))
    found, scores = decode(heatmaps, (28, 36))
    for b in range(4):
        for j in range(3):
            rows = heatmaps[b, j].tolist()
            score, y, x = max((value, y, x) for y, row in enumerate(rows) for x, value in enumerate(row))
            dx = dy = 0.0
            if 0 < x < 8:
                dx = math.copysign(0.25, rows[y][x + 1] - rows[y][x - 1])
            if 0 < y < 6:
                dy = math.copysign(0.25, rows[y + 1][x] - rows[y - 1][x])
            assert found[b, j].tolist() == [(x + dx + 0.5) * 4 - 0.5, (y + dy + 0.5) * 4 - 0.5]
            assert scores[b, j].item() == score


def test_a_map_one_pixel_wide_decodes():
    found, _ = decode(torch.ones(1, 1, 1, 1), (4, 4))
    assert found.tolist() == [[[1.5, 1.5]]]
