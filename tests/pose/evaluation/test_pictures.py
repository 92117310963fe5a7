"""Predictions in pixels of the original images, and the pictures of their errors."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from dots import dotted, predictor
from folders import arm_annotations, write_arm

from fedgh_app.pose.data.records import PoseRecord, load_spec
from fedgh_app.pose.evaluation.people import Errors, errors_of, nearest_errors, predict_detections, predict_people
from fedgh_app.pose.evaluation.pictures import error_histograms, mean_errors, worst_predictions
from fedgh_app.pose.official.results import Result
from fedgh_app.pose.prediction.boxes import Box
from fedgh_app.pose.prediction.drawing import PREDICTION, TRUTH
from fedgh_app.pose.readers import read_records

ARM = load_spec("arm")
LEFT = np.array([[40, 50], [70, 90], [110, 60]], np.float32)
OTHER = np.array([[300, 200], [260, 230], [230, 190]], np.float32)


def person(image: Path, points: np.ndarray, name: str) -> PoseRecord:
    low, high = points.min(0) - 20, points.max(0) + 20
    box = np.concatenate([low, high - low])
    return PoseRecord(name, image, points, np.ones(3, bool), box, float(box[2:].max()), name, image_id=image.stem)


@pytest.fixture
def people(tmp_path: Path) -> list[PoseRecord]:
    """Arms of dots: two in one image, between them one in another."""
    both = np.minimum(dotted(LEFT, 360, 280), 255)
    drawn = dotted(OTHER, 360, 280)
    both[140:] = drawn[140:]
    cv2.imwrite(str(tmp_path / "a.png"), both[..., ::-1])
    cv2.imwrite(str(tmp_path / "b.png"), dotted(LEFT, 360, 280)[..., ::-1])
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    return [person(a, LEFT, "0"), person(b, LEFT, "1"), person(a, OTHER, "2")]


def test_everybody_is_found_where_they_are_in_the_image(people: list[PoseRecord]) -> None:
    told: list[tuple[int, int]] = []
    found = predict_people(predictor(batch_size=1), people, progress=lambda done, total: told.append((done, total)))
    assert [record.id for record, _ in found] == ["0", "2", "1"]  # each image is read once
    assert told == [(2, 3), (3, 3)]
    errors = errors_of(found)
    off = errors.distance * [[record.reference_length] for record in errors.records]
    assert off.max() < 3  # px; the model sees two thirds of a pixel, the dots have 17
    assert mean_errors(errors) == pytest.approx(errors.distance.mean(1))


def test_the_nearest_detection_is_whose_it_is(people: list[PoseRecord]) -> None:
    images = {"a": people[0].image, "b": people[1].image, "c": Path("none.png")}
    boxes = {"a": [Box(people[2].box, 0.5), Box(people[0].box, 0.9)]}
    found = predict_detections(predictor(), images, boxes)
    assert list(found) == ["a"]
    results = [Result("a", 1, one.keypoints, one.scores, 1.0) for one in found["a"]]
    errors = nearest_errors(people, results)
    assert errors is not None
    assert [record.id for record in errors.records] == ["0", "2"]
    assert errors.distance.max() < 0.05
    assert nearest_errors(people, []) is None


def errors_at(distance: list[list[float]], visible: list[list[bool]] | None = None) -> Errors:
    rows = np.array(distance)
    return Errors([], np.zeros((*rows.shape, 2)), rows, np.array(visible or np.ones_like(rows), bool))


def test_bars_are_shares_of_people_on_both_sides_of_the_line() -> None:
    # 0.2 itself is right, and drawn right of the line: a bar begins at its lower edge.
    distance = [[0.01, 0.1, 0.2], [0.19, 0.1, 0.3], [0.21, 0.1, 7.0], [0.61, 0.1, 0.01]]
    visible = [[True, False, True]] * 4
    figure = error_histograms(errors_at(distance, visible), ARM, "title")
    shoulder, elbow, wrist = figure.axes
    heights = np.array([bar.get_height() for bar in shoulder.patches])
    starts = np.array([bar.get_x() for bar in shoulder.patches])
    assert heights.sum() == pytest.approx(100)
    assert heights[starts < 0.2 - 1e-9].sum() == pytest.approx(50)
    assert any(start == pytest.approx(0.2) for start in starts)
    assert [axes.get_title() for axes in figure.axes] == ["shoulder: 50.0 %", "elbow: not annotated", "wrist: 50.0 %"]
    assert not any(bar.get_height() for bar in elbow.patches)
    assert wrist.patches[-1].get_height() == pytest.approx(25)  # 7 boxes away lies beyond the axis
    assert wrist.lines[0].get_xdata()[0] == 0.2
    assert wrist.get_xlim()[1] == pytest.approx(3.2)


def test_the_worst_come_first_and_are_drawn_where_they_are(tmp_path: Path) -> None:
    records, _ = read_records(ARM, write_arm(tmp_path, 3, arm_annotations(3)))
    points = np.stack([record.keypoints for record in records]).astype(float)
    points[1] += [0, 4]
    points[2] += [8, 0]
    distance = np.linalg.norm(points - np.stack([record.keypoints for record in records]), axis=-1) / 24
    errors = Errors(records, points, distance, np.ones((3, 3), bool))
    sheet = worst_predictions(errors, ARM, count=2).astype(int)
    # Two tiles side by side: in the first the prediction lies right of the truth, in the second below it.
    half = sheet.shape[1] // 2
    middles = []
    for tile in (sheet[40:, :half], sheet[40:, half:]):
        for colour in (TRUTH, PREDICTION):
            rows, columns = np.nonzero(np.abs(tile - np.array(colour)).sum(-1) < 12)
            middles.append((columns.mean(), rows.mean()))
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = middles
    scale = 288 / 24 / 1.5
    assert (x1 - x0, y1 - y0) == pytest.approx((8 * scale, 0), abs=5)
    assert (x3 - x2, y3 - y2) == pytest.approx((0, 4 * scale), abs=5)
