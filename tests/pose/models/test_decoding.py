import math

import numpy as np
import pytest
import torch
from augmented import augmented_crop
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from fedgh_app.errors import UserError
from fedgh_app.pose.data.crops import apply_affine, invert_affine
from fedgh_app.pose.models.decoding import (
    Dark,
    Integral,
    MassAtPeak,
    argmax,
    decoder,
    flip_tested,
    mirrored_back,
    peak_height,
    quarter,
)
from fedgh_app.pose.models.heatmaps import peaks, render_gaussian, to_heatmap, to_input
from fedgh_app.pose.models.losses import HeatmapCrossEntropy, HeatmapMSE

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
    assert decoder(heatmaps, "quarter", HeatmapMSE()) is quarter
    assert decoder(heatmaps, "argmax", HeatmapMSE()) is argmax
    assert decoder(heatmaps, "dark", HeatmapMSE(3.0)) == Dark(sigma=3.0, logits=False)
    assert decoder(heatmaps, "dark", HeatmapCrossEntropy()) == Dark(sigma=2.0, logits=True)
    assert decoder(integral, "argmax", HeatmapMSE()) == Integral(beta=2.0)
    for model in (heatmaps, integral):
        with pytest.raises(UserError, match=r"evaluate\.decoding=half: expected argmax, quarter or dark"):
            decoder(model, "half", HeatmapMSE())


def gaussian_place(heatmap_size, across, down, sigma=2.0):
    """A point of a map, at least three sigma from its border, at these fractions of what is left."""
    height, width = heatmap_size
    reach = 3 * sigma * width / 64
    return [-0.5 + reach + part * (side - 2 * reach) for part, side in ((across, width), (down, height))]


fraction = st.floats(0, 1)
sigmas = st.sampled_from([2.0, 3.0])


@given(st.sampled_from(SIZES), sigmas, fraction, fraction, st.floats(0.05, 20), st.floats(-50, 50))
def test_dark_finds_a_rendered_gaussian_within_a_twentieth_of_a_pixel(sizes, sigma, across, down, height, constant):
    input_size, heatmap_size = sizes
    expected = one(*gaussian_place(heatmap_size, across, down, sigma))
    gaussian = render_gaussian(to_input(expected, input_size, heatmap_size), SEEN, input_size, heatmap_size, sigma)
    # As a squared error trains it, of whatever height; and as logits, which the cross-entropy leaves a constant.
    logits = gaussian.double().clamp(min=1e-300).log().float() + constant
    for maps, dark in ((height * gaussian, Dark(sigma)), (logits, Dark(sigma, logits=True))):
        found, scores = dark(maps, input_size)
        assert (to_heatmap(found, input_size, heatmap_size) - expected).abs().max() <= 0.05
        assert scores == maps.max()


@given(
    st.sampled_from(SIZES),
    fraction,
    fraction,
    st.floats(20, 400),
    st.floats(20, 400),
    st.floats(-180, 180),
    st.floats(0.5, 1.5),
    st.booleans(),
    st.tuples(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3)),
)
def test_dark_leads_back_through_crop_rotation_and_flip_within_half_a_pixel_of_the_image(
    sizes, across, down, box_width, box_height, rotation, scale, flip, shift
):
    input_size, heatmap_size = sizes
    box, size = (37.5, -12.0, box_width, box_height), input_size[::-1]
    crop = augmented_crop(box, size, translate=shift, rotation_deg=rotation, magnification=scale, flip=flip)
    # The keypoint in the image that the crop brings to this place; then the way of training and prediction.
    place = to_input(one(*gaussian_place(heatmap_size, across, down)).double(), input_size, heatmap_size)
    keypoint = apply_affine(place[0].numpy(), invert_affine(crop))
    in_crop = torch.from_numpy(apply_affine(keypoint, crop).astype(np.float32))[None]
    found, _ = Dark()(render_gaussian(in_crop, SEEN, input_size, heatmap_size), input_size)
    back = apply_affine(found[0].numpy(), invert_affine(crop))
    assert np.linalg.norm(back - keypoint) <= 0.5


def test_dark_is_the_newton_step_on_the_smoothed_logarithm():
    # A second implementation, in loops: blur the map, take its logarithm, solve H step = -g at the highest pixel.
    generator = torch.Generator().manual_seed(0)
    keypoints = torch.rand(2, 2, 2, generator=generator) * 36 + 14
    visible = torch.ones(2, 2, dtype=torch.bool)
    maps = render_gaussian(keypoints, visible, (64, 64), (32, 32))
    maps += 0.1 * torch.rand(maps.shape, generator=generator)
    found, _ = Dark()(maps, (64, 64))
    pixels = torch.arange(32)
    for b in range(2):
        for j in range(2):
            blurred = torch.zeros(32, 32, dtype=torch.float64)
            for v in range(32):
                for u in range(32):
                    near = torch.exp(-((pixels[:, None] - v) ** 2 + (pixels - u) ** 2) / 2.0)  # sigma is 1
                    blurred[v, u] = (near * maps[b, j]).sum()
            f = blurred.log().numpy()
            y, x = np.unravel_index(int(maps[b, j].argmax()), (32, 32))
            gradient = np.array([f[y, x + 1] - f[y, x - 1], f[y + 1, x] - f[y - 1, x]]) / 2
            mixed = f[y + 1, x + 1] - f[y + 1, x - 1] - f[y - 1, x + 1] + f[y - 1, x - 1]
            hessian = np.array(
                [
                    [f[y, x + 2] - 2 * f[y, x] + f[y, x - 2], mixed],
                    [mixed, f[y + 2, x] - 2 * f[y, x] + f[y - 2, x]],
                ]
            )
            place = np.array([x, y]) - np.linalg.solve(hessian / 4, gradient)
            np.testing.assert_allclose(found[b, j], (place + 0.5) * 2 - 0.5, atol=1e-3)


def test_dark_finds_noisy_gaussians_better_than_the_quarter_shift():
    generator = torch.Generator().manual_seed(0)
    keypoints = torch.rand(50, 4, 2, generator=generator) * 200 + 28
    maps = render_gaussian(keypoints, torch.ones(50, 4, dtype=torch.bool), (256, 256), (64, 64))
    maps = maps + 0.05 * torch.randn(maps.shape, generator=generator)
    dark, coarse = (
        torch.linalg.vector_norm(decode(maps, (256, 256))[0] - keypoints, dim=-1).mean() for decode in (Dark(), quarter)
    )
    assert dark < 0.5 * coarse


def test_where_a_map_is_no_gaussian_dark_takes_the_quarter_shift():
    maps = torch.zeros(1, 5, 16, 16)  # sigma is 0.5: within 0.75 of the border, which is its first pixel, it must
    maps[0, 0, 0, 5], maps[0, 0, 0, 6] = 1.0, 0.5  # on the border
    maps[0, 1] = -3.0  # flat and negative
    maps[0, 2] = 1.0  # flat
    maps[0, 3, 8, 4:9] = torch.tensor([0.5, 0.2, 1.0, 0.3, 0.9])  # a valley on both sides in x
    maps[0, 3, 4:9, 6] = torch.tensor([0.9, 0.2, 1.0, 0.3, 0.5])
    maps[0, 4] = math.nan
    for logits in (False, True):
        found, scores = Dark(sigma=2.0, logits=logits)(maps, (64, 64))
        expected, values = quarter(maps, (64, 64))
        torch.testing.assert_close(found[0, [0, 1, 2, 4]], expected[0, [0, 1, 2, 4]])
        torch.testing.assert_close(scores, values, equal_nan=True)
        assert (found[0, 3] - expected[0, 3]).abs().max() <= 2 * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_decoders_give_the_same_on_a_gpu():
    maps = torch.randn(4, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    for decode in (argmax, quarter, Dark(), Dark(logits=True), Integral()):
        for here, there in zip(decode(maps, (64, 48)), decode(maps.cuda(), (64, 48)), strict=True):
            torch.testing.assert_close(there.cpu(), here, atol=1e-3, rtol=1e-3)


def mirrored_keypoints(keypoints, permutation, width):
    turned = keypoints[:, permutation].clone()
    turned[..., 0] = width - 1 - turned[..., 0]
    return turned


@given(st.sampled_from(SIZES), st.lists(st.tuples(fraction, fraction), min_size=3, max_size=3))
def test_maps_of_the_mirror_image_meet_those_of_the_image_without_any_shift(sizes, places):
    input_size, heatmap_size = sizes
    keypoints = torch.tensor([places]) * (torch.tensor(input_size[::-1]) - 1)
    seen, permutation = torch.ones(1, 3, dtype=torch.bool), [1, 0, 2]
    turned = mirrored_keypoints(keypoints, permutation, input_size[1])
    maps = render_gaussian(keypoints, seen, input_size, heatmap_size)
    back = mirrored_back(render_gaussian(turned, seen, input_size, heatmap_size), np.array(permutation))
    torch.testing.assert_close(back, maps, atol=1e-4, rtol=0)


def test_a_flip_test_by_hand():
    # Two joints that change places, maps of 1 x 4. The image's peaks: 2 and 0; the mirror image's: 0 and 2.
    maps = torch.zeros(1, 2, 1, 4)
    maps[0, 0, 0, 2] = maps[0, 1, 0, 0] = 1.0
    mirror = torch.zeros(1, 2, 1, 4)
    mirror[0, 0, 0, 0] = mirror[0, 1, 0, 2] = 0.5
    back = mirrored_back(mirror, [1, 0])
    # Joint 0 was the mirror image's joint 1 at 2, which is 1 here; joint 1 was its joint 0 at 0, here 3.
    assert back[0, :, 0].tolist() == [[0, 0.5, 0, 0], [0, 0, 0, 0.5]]
    found, scores = flip_tested(quarter, maps, back, (1, 4))
    assert found[0].tolist() == [[1.75, 0], [0, 0]]
    assert scores[0].tolist() == [0.5, 0.5]


@given(st.floats(5, 10), st.floats(-2, 2))
def test_of_two_gaussians_the_flip_test_finds_the_middle(x, apart):
    # Logits: the mean is again a parabola. Gaussians: one bump as long as they overlap, symmetric about the middle.
    assume(abs(apart) > 0.01)
    centres = to_input(torch.tensor([[[x, 7.0]], [[x + apart, 7.0]]]), (64, 64), (16, 16))
    maps = render_gaussian(centres, torch.ones(2, 1, dtype=torch.bool), (64, 64), (16, 16), sigma=6.0)
    middle = to_input(one(x + apart / 2, 7.0), (64, 64), (16, 16))
    for each, decode, error in ((maps.log(), Dark(6.0, logits=True), 0.05), (maps, Dark(6.0), 0.5)):
        found, _ = flip_tested(decode, each[:1], each[1:], (64, 64))
        assert (found - middle).abs().max() <= error * 4


def test_of_an_integral_head_the_flip_test_averages_points():
    maps = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0)) * 3
    for integral in (Integral(debiased=False), Integral(debiased=True)):
        found, scores = flip_tested(integral, maps[:1], maps[1:], (20, 24))
        points, heights = integral(maps, (20, 24))
        torch.testing.assert_close(found, points.mean(0, keepdim=True))
        torch.testing.assert_close(scores, heights.mean(0, keepdim=True))
    # Undebiased that is the expectation under the mean of the distributions.
    mean = maps.flatten(-2).softmax(-1).mean(0, keepdim=True).unflatten(-1, (5, 6))
    found, _ = flip_tested(Integral(debiased=False), maps[:1], maps[1:], (20, 24))
    torch.testing.assert_close(found, Integral(debiased=False)(mean.log(), (20, 24))[0])


def log_target(x: float, y: float) -> torch.Tensor:
    """Maps whose softmax is the normalised target of a keypoint at (x, y) of a 64 x 64 input."""
    target = render_gaussian(one(x, y), SEEN, (64, 64), (64, 64))
    return target.clamp(min=1e-30).log()


def test_a_map_that_is_its_target_is_sure_and_a_flat_one_has_the_share_of_the_window() -> None:
    sure = MassAtPeak(sigma=2.0)
    along = [math.exp(-(pixel**2) / 8) for pixel in range(-20, 21)]  # deviation 2, so that the window is 9 pixels wide
    assert abs(sure(log_target(30, 20)).item() - (sum(along[16:25]) / sum(along)) ** 2) < 1e-5
    flat = sure(torch.zeros(1, 1, 64, 64))
    assert abs(flat.item() - 5 * 5 / 64**2) < 1e-6  # the first pixel is the peak, so the window is cut at the corner


def test_two_equal_peaks_share_the_mass_and_beta_decides_between_unequal_ones() -> None:
    two = torch.logaddexp(log_target(12, 12), log_target(50, 50))
    alone = MassAtPeak()(log_target(12, 12))
    assert torch.allclose(MassAtPeak()(two), alone / 2, atol=1e-3)
    maps = torch.full((1, 1, 16, 16), -50.0)
    maps[..., 3, 3], maps[..., 12, 12] = 0.0, 1.0
    for beta in (0.5, 4.0):
        expected = 1 / (1 + math.exp(-beta))
        assert abs(MassAtPeak(beta=beta)(maps).item() - expected) < 1e-6


def test_the_height_of_a_gaussian_is_its_confidence() -> None:
    maps = torch.tensor([[[[0.1, 0.6], [0.2, 0.0]], [[-1.0, -2.0], [-3.0, -1.5]], [[0.5, 1.3], [0.0, 0.0]]]])
    assert torch.equal(peak_height(maps), torch.tensor([[0.6, 0.0, 1.0]]))
