import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedgh_app.pose.evaluation.metrics import (
    MPII_GROUPS,
    MPII_LEFT_OUT,
    heatmap_hits,
    mean_present,
    pck,
    pckh,
)
from fedgh_app.pose.models.decoding import Integral
from fedgh_app.pose.models.heatmaps import render_gaussian

# Three examples of three keypoints; the last is never visible.
DISTANCE = np.array([[0.1, 0.2, 0.0], [0.25, 0.0, 0.0], [0.2, 9.0, 0.0]], np.float64)
VISIBLE = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0]], bool)


def test_pck_by_hand_with_the_boundary_counted_as_correct():
    np.testing.assert_allclose(pck(DISTANCE, VISIBLE, 0.2), [2 / 3, 1 / 2, np.nan])


def test_a_prediction_that_is_nan_is_wrong():
    distance = np.where(np.eye(3, dtype=bool), np.nan, DISTANCE)
    np.testing.assert_allclose(pck(distance, VISIBLE, 0.2), [1 / 3, 1 / 2, np.nan])


@given(hnp.arrays(np.float64, (6, 4), elements=st.floats(0, 2)), hnp.arrays(bool, (6, 4)), st.floats(0, 2))
def test_pck_equals_a_loop(distance, visible, threshold):
    for j, value in enumerate(pck(distance, visible, threshold)):
        seen = [d for d, v in zip(distance[:, j], visible[:, j], strict=True) if v]
        if seen:
            assert value == pytest.approx(sum(d <= threshold for d in seen) / len(seen))
        else:
            assert math.isnan(value)


@given(hnp.arrays(np.float64, (5, 16), elements=st.floats(0, 1)), hnp.arrays(bool, (5, 16)))
def test_pckh_equals_the_official_steps(distance, visible):
    """The masked-array arithmetic of the published evaluation, with every joint annotated at least once."""
    visible[0] = True
    count = visible.sum(0)
    per_joint = 100.0 * ((distance <= 0.5) * visible).sum(0) / count
    masked = np.ma.array(per_joint, mask=False)
    masked.mask[6:8] = True
    ratio = np.ma.array(count, mask=masked.mask)
    ratio = ratio / ratio.sum().astype(np.float64)
    found = pckh(distance, visible)
    assert found["mean"] * 100 == pytest.approx(np.ma.sum(masked * ratio))
    assert found["head"] * 100 == pytest.approx(masked[9])
    assert found["shoulder"] * 100 == pytest.approx(0.5 * (masked[13] + masked[12]))
    assert found["ankle"] * 100 == pytest.approx(0.5 * (masked[5] + masked[0]))


def test_pckh_groups_name_every_joint_but_neck_pelvis_and_thorax():
    grouped = sorted(j for joints in MPII_GROUPS.values() for j in joints)
    assert grouped == sorted(set(range(16)) - {8, *MPII_LEFT_OUT})


def test_pckh_leaves_out_a_side_that_is_never_annotated():
    visible = np.ones((2, 16), bool)
    visible[:, 10] = False
    assert pckh(np.zeros((2, 16)), visible)["wrist"] == 1
    visible[:, 15] = False
    assert math.isnan(pckh(np.zeros((2, 16)), visible)["wrist"])


def test_pckh_refuses_another_skeleton():
    with pytest.raises(ValueError, match="found 14 joints"):
        pckh(np.zeros((2, 14)), np.ones((2, 14), bool))


def simple_baselines_accuracy(output, target, thr=0.5):
    """`accuracy` of the authors' code, for square maps, with its loops."""
    n, joints, height, width = output.shape

    def peak(maps):
        flat = maps.reshape(n, joints, -1)
        return np.stack((flat.argmax(2) % width, flat.argmax(2) // width), -1).astype(float)

    found, wanted = peak(output), peak(target)
    accuracies = []
    for j in range(joints):
        distances = [
            np.linalg.norm((found[i, j] - wanted[i, j]) / (np.array([height, width]) / 10))
            for i in range(n)
            if wanted[i, j, 0] > 1 and wanted[i, j, 1] > 1
        ]
        if distances:
            accuracies.append(np.mean(np.array(distances) < thr))
    return np.mean(accuracies)


@pytest.mark.parametrize("seed", range(5))
def test_heatmap_accuracy_is_that_of_simple_baselines(seed):
    generator = torch.Generator().manual_seed(seed)
    keypoints = torch.rand(20, 3, 2, generator=generator) * 64
    visible = torch.rand(20, 3, generator=generator) < 0.8
    target = render_gaussian(keypoints, visible, (64, 64), (16, 16))
    moved = keypoints + 2 * torch.randn(20, 3, 2, generator=generator)
    output = render_gaussian(moved, torch.ones_like(visible), (64, 64), (16, 16))
    hits = heatmap_hits(output, keypoints, visible, (64, 64)).numpy()
    accuracy = mean_present(np.nanmean(hits, axis=0))
    assert 0.05 < accuracy < 0.95
    assert accuracy == pytest.approx(simple_baselines_accuracy(output.numpy(), target.numpy()), rel=1e-6)


def test_heatmap_hits_by_hand():
    # A map 20 wide and 10 high: tenths of 2 and 1 px, so right is closer than 1 px along x, 0.5 along y.
    target = torch.tensor([[[25.5, 21.5]] * 4 + [[5.5, 21.5]]])  # heatmap (6, 5), and (1, 5), which is ignored
    visible = torch.tensor([[True, True, True, False, True]])
    heatmaps = torch.zeros(1, 5, 10, 20)
    for joint, (x, y) in enumerate([(6, 5), (7, 5), (6, 6), (6, 5), (1, 5)]):
        heatmaps[0, joint, y, x] = 1
    hits = heatmap_hits(heatmaps, target, visible, (40, 80))[0].tolist()
    assert hits[:3] == [1, 0, 0]
    assert math.isnan(hits[3]) and math.isnan(hits[4])


def test_hits_of_implicit_heatmaps_are_of_the_expectation_not_of_the_peak():
    # Mass 1/2 at (2, 5), 1/4 each at (9, 5) and (11, 5): the peak is at x = 2, the expectation and the truth at 6.
    logits = torch.full((1, 1, 10, 20), -1e9)
    logits[0, 0, 5, [2, 9, 11]] = torch.tensor([0.5, 0.25, 0.25]).log()
    target, visible = torch.tensor([[[25.5, 21.5]]]), torch.tensor([[True]])
    assert heatmap_hits(logits, target, visible, (40, 80)).item() == 0
    assert heatmap_hits(logits, target, visible, (40, 80), Integral(debiased=False)).item() == 1
    assert heatmap_hits(logits, target + 4, visible, (40, 80), Integral(debiased=False)).item() == 0
