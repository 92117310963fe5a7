import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedgh_app.pose.decoding import Integral, argmax, decoder, quarter
from fedgh_app.pose.errors import UserError
from fedgh_app.pose.heatmaps import peaks, render_gaussian, to_heatmap

SIZES = [((64, 64), (16, 16)), ((256, 192), (64, 48)), ((64, 96), (16, 24))]
SEEN = torch.ones(1, 1, dtype=torch.bool)


def one(x, y):
    return torch.tensor([[[x, y]]], dtype=torch.float32)


@given(st.sampled_from(SIZES), st.floats(0, 1), st.floats(0, 1))
def test_decoding_a_rendered_keypoint_returns_it_within_half_a_heatmap_pixel(sizes, across, down):
    (input_size, heatmap_size) = sizes
    scale = input_size[1] / heatmap_size[1]
    keypoint = one(across * input_size[1] - 0.5, down * input_size[0] - 0.5)
    heatmap = render_gaussian(keypoint, SEEN, input_size, heatmap_size)
    found, score = quarter(heatmap, input_size)
    assert (found - keypoint).abs().max() <= 0.5 * scale + 1e-3
    # The peak is the pixel in which the keypoint lies (up to ties on the edge between two).
    peak, height = peaks(heatmap)
    assert (to_heatmap(keypoint, input_size, heatmap_size) - peak).abs().max() <= 0.5 + 1e-3
    assert score == height == heatmap.max()


@given(st.floats(4, 59), st.floats(4, 59))
def test_the_quarter_shift_halves_the_worst_error_inside_the_map(x, y):
    # Within a pixel, error <= 0.5; moved 0.25 toward the keypoint's side, <= 0.25 heatmap px = 1 input px.
    found, _ = quarter(render_gaussian(one(x, y), SEEN, (64, 64), (16, 16)), (64, 64))
    assert (found - one(x, y)).abs().max() <= 1 + 1e-3


def test_decoding_by_hand_inside_and_on_the_border():
    heatmaps = torch.zeros(1, 5, 4, 4)
    heatmaps[0, 0, 1, 2], heatmaps[0, 0, 1, 3] = 1.0, 0.5  # right neighbour higher
    heatmaps[0, 1, 2, 1], heatmaps[0, 1, 1, 1], heatmaps[0, 1, 2, 0] = 1.0, 0.5, 0.2  # upper and left higher
    heatmaps[0, 2, 0, 3], heatmaps[0, 2, 0, 2] = 1.0, 0.9  # corner: no shift
    heatmaps[0, 3, 0, 1], heatmaps[0, 3, 0, 2] = 1.0, 0.9  # upper border: shift along x only
    heatmaps[0, 4] = -3.0  # flat and negative: the first pixel
    found, scores = quarter(heatmaps, (4, 4))
    assert found[0].tolist() == [[2.25, 1.0], [0.75, 1.75], [3.0, 0.0], [1.25, 0.0], [0.0, 0.0]]
    assert scores[0].tolist() == [1, 1, 1, 1, -3]


def test_decoding_equals_a_loop_over_maps():
    heatmaps = torch.randn(4, 3, 7, 9, generator=torch.Generator().manual_seed(1))
    found, scores = quarter(heatmaps, (28, 36))
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
    found, _ = quarter(torch.ones(1, 1, 1, 1), (4, 4))
    assert found.tolist() == [[[1.5, 1.5]]]


def test_argmax_by_hand():
    maps = torch.zeros(1, 2, 2, 3)
    maps[0, 0, 1, 2], maps[0, 1, 0, 0] = 4.0, -1.0
    found, scores = argmax(maps, (8, 12))  # 4 input pixels for each of the map's: pixel 0 is 1.5
    assert found[0].tolist() == [[9.5, 5.5], [5.5, 1.5]]
    assert scores[0].tolist() == [4, 0]


def peak_on_background(height, width, x, y, logit):
    maps = torch.zeros(1, 1, height, width)
    maps[0, 0, y, x] = logit
    return maps


def test_the_integral_of_an_even_map_is_its_centre_debiased_or_not():
    for debiased in (False, True):  # all of it is background: nothing to take out
        found, scores = Integral(debiased)(torch.full((1, 2, 3, 5), 0.0), (12, 20))
        torch.testing.assert_close(found, torch.tensor([[[9.5, 5.5]] * 2]))
        torch.testing.assert_close(scores, torch.full((1, 2), 1 / 15))


def test_the_integral_of_a_certain_map_is_its_pixel():
    for debiased in (False, True):
        maps = peak_on_background(3, 5, x=4, y=0, logit=100.0)
        found, scores = Integral(debiased)(maps, (12, 20))
        torch.testing.assert_close(found, one(17.5, 1.5))
        assert scores.item() == pytest.approx(1)


def test_debiasing_by_hand():
    # A peak of logit ln 7 in a 2 x 4 map at (3, 1), the other seven logits 0: masses 1/2 and 1/14 each.
    maps = peak_on_background(2, 4, x=3, y=1, logit=math.log(7))
    # x_raw = 3/2 + (12 - 3)/14 = 15/7, y_raw = 1/2 + (4 - 1)/14 = 5/7; r = 8/14, centre (3/2, 1/2).
    torch.testing.assert_close(Integral(debiased=False).coordinates(maps), one(15 / 7, 5 / 7))
    # (15/7 - 6/7) / (3/7) = 3 and (5/7 - 2/7) / (3/7) = 1: the peak.
    torch.testing.assert_close(Integral().coordinates(maps), one(3.0, 1.0))
    torch.testing.assert_close(Integral(beta=0.5).coordinates(2 * maps), one(3.0, 1.0))


@given(st.integers(2, 9), st.integers(2, 9), st.floats(2, 8), st.floats(0.5, 2), st.data())
def test_debiasing_finds_a_peak_on_an_even_background(height, width, logit, beta, data):
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    maps = peak_on_background(height, width, x, y, logit=logit / beta).double()
    found = Integral(beta=beta).coordinates(maps)
    share = height * width / (math.exp(logit) + height * width - 1)
    if share < 0.95:
        torch.testing.assert_close(found, one(x, y).double())
    else:
        torch.testing.assert_close(found, Integral(False, beta).coordinates(maps))


def test_a_map_of_background_keeps_its_raw_point_from_a_share_of_95_percent_on():
    # hw = 20 and a peak of logit ln(1 + 1/k): r = 20 / (20 + 1/k), which is 0.95 at k = 0.95.
    for k, kept in ((0.90, True), (1.0, False)):
        maps = peak_on_background(4, 5, x=4, y=0, logit=math.log(1 + 1 / k)).double()
        raw = Integral(debiased=False).coordinates(maps)
        expected = one(4.0, 0.0).double() if kept else raw
        torch.testing.assert_close(Integral().coordinates(maps), expected)


def test_the_integral_equals_a_loop_over_pixels():
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    beta = 1.5
    for debiased in (False, True):
        found = Integral(debiased, beta).coordinates(maps)
        for b in range(2):
            for j in range(3):
                weight = {(x, y): math.exp(beta * maps[b, j, y, x]) for y in range(4) for x in range(5)}
                total = sum(weight.values())
                x = sum(w * u for (u, _), w in weight.items()) / total
                y = sum(w * v for (_, v), w in weight.items()) / total
                share = 20 / total
                if debiased and share < 0.95:
                    x, y = (x - share * 2) / (1 - share), (y - share * 1.5) / (1 - share)
                torch.testing.assert_close(found[b, j], torch.tensor([x, y], dtype=torch.float64))


def test_the_integral_differentiates_also_where_the_background_is_all_there_is():
    generator = torch.Generator().manual_seed(0)
    maps = (torch.randn(1, 2, 3, 4, generator=generator, dtype=torch.float64) * 3).requires_grad_()
    torch.autograd.gradcheck(Integral().coordinates, maps)
    extremes = torch.stack([torch.zeros(3, 4), torch.full((3, 4), -1e4), peak_on_background(3, 4, 1, 1, 1e4)[0, 0]])
    extremes = extremes[None].requires_grad_()
    Integral().coordinates(extremes).sum().backward()
    assert extremes.grad.isfinite().all()


@pytest.mark.parametrize("beta", [0, -1.0, math.inf, math.nan, "much", True])
def test_a_sharpness_that_is_none_is_refused(beta):
    with pytest.raises(UserError, match=r"model\.beta: found .*, expected a number above 0"):
        Integral(beta=beta)


def test_a_model_with_an_integral_head_is_read_by_it_and_others_by_name():
    heatmaps, integral = nn.Identity(), nn.Identity()
    integral.integral = Integral(beta=2.0)
    assert decoder(heatmaps) is decoder(heatmaps, "quarter") is quarter
    assert decoder(heatmaps, "argmax") is argmax
    assert decoder(integral, "argmax") == Integral(beta=2.0)
    for model in (heatmaps, integral):
        with pytest.raises(UserError, match=r"evaluate\.decoding=half: expected one of argmax, quarter"):
            decoder(model, "half")
