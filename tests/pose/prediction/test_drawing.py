import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgh_app.pose.data.records import load_spec
from fedgh_app.pose.prediction.drawing import (
    LEGEND,
    PAPER,
    PREDICTION,
    TRUTH,
    contact_sheet,
    draw_comparison,
    draw_skeleton,
    keypoint_colours,
)

ARM = load_spec("arm")
POINTS = np.array([[20.0, 20.0], [60.0, 20.0], [60.0, 70.0]])
ALL = [True] * 3


def _plain(value: int, size: int = 100) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


@pytest.mark.parametrize("ground", [0, 128, 255])
def test_joints_and_limbs_are_seen_on_every_ground(ground: int) -> None:
    drawn = draw_skeleton(_plain(ground), POINTS, ALL, ARM, shortest=100)
    colours = keypoint_colours(3)
    for (x, y), colour in zip(POINTS.astype(int), colours, strict=True):
        assert tuple(drawn[y, x]) == colour
    assert tuple(drawn[20, 40]) == colours[1] and tuple(drawn[45, 60]) == colours[2]
    assert tuple(drawn[90, 10]) == (ground,) * 3  # elsewhere nothing changed
    rim = drawn[14:27, 40].astype(int).sum(axis=1)
    assert rim.min() < 150 < 400 < rim.max()  # a dark rim and a bright line


def test_the_given_image_is_not_touched() -> None:
    image = _plain(10)
    draw_skeleton(image, POINTS, ALL, ARM, shortest=100)
    assert (image == 10).all()


def test_invisible_and_impossible_joints_are_not_drawn() -> None:
    points = POINTS.copy()
    points[0] = np.nan
    drawn = draw_skeleton(_plain(0), points, [True, True, False], ARM, shortest=100)
    assert tuple(drawn[20, 60]) == keypoint_colours(3)[1]
    assert not drawn[45, 60].any() and not drawn[20, 30].any()
    assert not draw_skeleton(_plain(0), POINTS, np.zeros(3, bool), ARM, shortest=100).any()


@given(st.integers(20, 90), st.integers(20, 90), st.integers(1, 4))
def test_enlarging_keeps_joints_on_their_pixels(x: int, y: int, factor: int) -> None:
    """A joint at a pixel's centre lands in the middle of the pixels into which that one grows."""
    drawn = draw_skeleton(_plain(0), [[x, y]] * 3, [False, False, True], ARM, shortest=100 * factor)
    assert drawn.shape == (100 * factor, 100 * factor, 3)
    rows, columns = np.nonzero(drawn.max(axis=2) > 100)
    assert columns.mean() == pytest.approx((x + 0.5) * factor - 0.5, abs=0.6)
    assert rows.mean() == pytest.approx((y + 0.5) * factor - 0.5, abs=0.6)


def test_comparison_shows_truth_hollow_and_prediction_filled() -> None:
    drawn = draw_comparison(_plain(0, 200), truth=POINTS, prediction=POINTS + 100, visible=ALL, spec=ARM, shortest=200)
    assert tuple(drawn[45, 60]) == TRUTH and tuple(drawn[145, 160]) == PREDICTION
    assert tuple(drawn[120, 120]) == PREDICTION
    ring = drawn[20, 5:20].max(axis=1)  # from left of the shoulder's ring to its middle
    assert ring[:3].max() == 0 and ring.max() > 200
    assert ring[ring.argmax() :].min() < 60  # hollow


def test_keypoint_colours_differ() -> None:
    for count in (1, 3, 14, 17):
        assert len(set(keypoint_colours(count))) == count
    assert keypoint_colours(0) == []


def test_sheet_places_tiles_in_rows() -> None:
    tiles = [np.full((20, 30, 3), 40 * k, np.uint8) for k in range(5)]
    sheet = contact_sheet(tiles, 2)
    assert sheet.shape == (8 + 3 * 28, 8 + 2 * 38, 3)
    assert (sheet[8:28, 46:76] == 40).all() and (sheet[64:84, 8:38] == 160).all()
    assert (sheet[64:84, 46:76] == PAPER).all()  # the empty sixth place


def test_sheet_shrinks_and_centres_tiles_and_writes() -> None:
    plain = contact_sheet([_plain(0, 400), np.zeros((50, 100, 3), np.uint8)], 2, largest=100)
    assert plain.shape == (8 + 108, 8 + 2 * 108, 3)
    assert (plain[8:33, 116:216] == PAPER).all() and not plain[34:82, 117:215].any()
    written = contact_sheet([_plain(0)], 1, ["front"], legend=LEGEND)
    assert (written[-20:] < 100).any()
    assert (written[:40] == TRUTH).all(axis=2).any()


def test_captions_are_cut_to_the_cell() -> None:
    wide = contact_sheet([_plain(255)] * 2, 2, ["x" * 200, ""])
    assert (wide[:, 112:] >= 250).all()  # the first caption does not run into the second cell


def test_senseless_sheets_are_refused() -> None:
    with pytest.raises(ValueError, match="0 tiles"):
        contact_sheet([], 2)
    with pytest.raises(ValueError, match="1 captions for 2 tiles"):
        contact_sheet([_plain(0)] * 2, 2, ["one"])
