from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedgh_app.pose.evaluation.metrics import Evaluation, pck
from fedgh_app.pose.evaluation.tally import BOUNDS, scores, tally
from fedgh_app.vision.tally import Tally

NAMES = ["shoulder", "elbow", "wrist"]
# Three examples of three keypoints; the last is never visible.
DISTANCE = np.array([[0.1, 0.2, 0.0], [0.25, 0.0, 0.0], [0.2, 9.0, 0.0]])
VISIBLE = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0]], bool)
HITS = np.array([[1.0, np.nan, np.nan], [0.0, np.nan, np.nan], [1.0, 1.0, np.nan]])


def evaluation(distance: np.ndarray, visible: np.ndarray, hits: np.ndarray | None = None) -> Evaluation:
    n, j = distance.shape
    return Evaluation(
        distance=distance,
        visible=visible,
        heatmap_hit=np.where(visible, 1.0, np.nan) if hits is None else hits,
        coordinates=np.zeros((n, j, 2), np.float32),
        scores=np.ones((n, j), np.float32),
        index=np.arange(n),
        loss=0.5,
        loss_terms=int(visible.sum()),
    )


def test_by_hand() -> None:
    found = scores(tally(evaluation(DISTANCE, VISIBLE, HITS), NAMES, 0.2))
    assert found.parts["shoulder"] == pytest.approx(2 / 3)  # 0.1 and 0.2, which lies on the threshold
    assert found.parts["elbow"] == pytest.approx(1 / 2)
    assert math.isnan(found.parts["wrist"])
    assert found.score == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.more["auc"] == pytest.approx((0.5 / 3 + 0) / 2)  # shoulder is right from half the threshold on, once
    assert found.more["heatmap_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert found.labelled == {"shoulder": 3, "elbow": 2, "wrist": 0}


def test_nothing_visible_is_nan_everywhere() -> None:
    found = scores(tally(evaluation(DISTANCE, np.zeros((3, 3), bool)), NAMES, 0.2))
    assert all(math.isnan(value) for value in (found.score, *found.more.values()))


def test_a_prediction_that_is_nan_is_wrong() -> None:
    found = scores(tally(evaluation(np.full((3, 3), np.nan), VISIBLE), NAMES, 0.2))
    assert found.score == 0
    assert found.more["auc"] == 0


def test_names_must_be_as_many_as_keypoints() -> None:
    with pytest.raises(ValueError, match="2 keypoint names for 3"):
        tally(evaluation(DISTANCE, VISIBLE), NAMES[:2], 0.2)


distances = hnp.arrays(np.float64, (7, 3), elements=st.floats(0, 1))
masks = hnp.arrays(bool, (7, 3))


@settings(deadline=None, max_examples=30)
@given(distances, masks, st.floats(0.05, 1))
def test_it_counts_what_pck_says_and_the_area_is_its_integral(
    distance: np.ndarray, visible: np.ndarray, threshold: float
) -> None:
    found = scores(tally(evaluation(distance, visible), NAMES, threshold))
    np.testing.assert_allclose(list(found.parts.values()), pck(distance, visible, threshold))
    grid = (np.arange(400) + 0.5) / 400 * threshold
    area = np.mean([pck(distance, visible, a) for a in grid], axis=0)
    if not np.isnan(area).all():
        assert found.more["auc"] == pytest.approx(np.nanmean(area), abs=2e-3)


@settings(deadline=None, max_examples=30)
@given(distances, masks, st.integers(0, 7))
def test_two_clients_add_up_to_one_that_has_both(distance: np.ndarray, visible: np.ndarray, cut: int) -> None:
    whole = tally(evaluation(distance, visible), NAMES, 0.2)
    parts = [tally(evaluation(distance[s], visible[s]), NAMES, 0.2) for s in (slice(0, cut), slice(cut, 7))]
    both = parts[0] + parts[1]
    for name in NAMES:
        assert both.sums[name] == pytest.approx(whole.sums[name])


def test_clients_with_other_keypoints_add_up() -> None:
    arm = tally(evaluation(DISTANCE, VISIBLE), NAMES, 0.2)
    leg = tally(evaluation(DISTANCE[:, :1], VISIBLE[:, :1]), ["knee"], 0.2)
    both = arm + leg
    assert list(both.sums) == [*NAMES, "knee"]
    assert both.sums["shoulder"] == arm.sums["shoulder"]


@given(distances, masks)
def test_it_survives_a_message(distance: np.ndarray, visible: np.ndarray) -> None:
    found = tally(evaluation(distance, visible), NAMES, 0.2)
    assert Tally.from_scalars({"loss": 1.0, "num-examples": 7, **found.as_scalars()}, BOUNDS) == found


@settings(deadline=None, max_examples=30)
@given(distances, masks, st.floats(0.05, 1))
def test_no_evaluation_is_impossible(distance: np.ndarray, visible: np.ndarray, threshold: float) -> None:
    assert tally(evaluation(distance, visible), NAMES, threshold).fault(BOUNDS, 7) is None
