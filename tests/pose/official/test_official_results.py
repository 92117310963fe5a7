"""Predictions files: what is read, and that anything else is one line that names the file and the entry."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import arm_annotations

from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import load_spec
from fedgh_app.pose.official import pck
from fedgh_app.pose.official.results import read_results, write_results

ARM = load_spec("arm")
POINTS = [10, 8, 0.9, 20, 15, 0.8, 29.5, 22, 0.7]  # where `arm_annotations` has them


def entry(image: int | str = 0, **changes: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "keypoints": POINTS, "score": 0.8} | changes


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """Two images with an arm each, no image file beside them; the longest side of each box is 24."""
    return write(tmp_path / "truth.json", arm_annotations(2))


def refused(truth: Path, predictions: Any, *words: str, **options: Any) -> None:
    file = write(truth.parent / "p.json", predictions)
    with pytest.raises(UserError) as caught:
        pck.score(ARM, truth, file, **options)
    message = str(caught.value)
    assert "\n" not in message and "expected" in message
    for word in words:
        assert word in message, message


def test_what_was_written_is_read(tmp_path: Path) -> None:
    (one,) = read_results(write(tmp_path / "a.json", [entry(annotation_id=7, more="x")]), ARM)
    np.testing.assert_array_equal(one.keypoints, [[10, 8], [20, 15], [29.5, 22]])
    assert (one.confidences.tolist(), one.score, one.annotation_id) == ([0.9, 0.8, 0.7], 0.8, "7")
    write_results(tmp_path / "b.json", [one])
    assert json.loads((tmp_path / "b.json").read_text()) == [entry(annotation_id="7")]


def test_pck_by_hand(truth: Path) -> None:
    # Within 0.2 of 24 px, 4.8: the elbow 4 px off is, the wrist 6 px off is not; 0.1 of it, 2.4, neither.
    moved = np.add(np.reshape(POINTS, (3, 3)), [[0, 0, 0], [4, 0, 0], [0, -6, 0]])
    file = write(truth.parent / "p.json", [entry(1), entry(0, keypoints=moved.ravel().tolist())])
    found = pck.score(ARM, truth, file)
    assert found.rows["PCK@0.2"] == pytest.approx(
        {"shoulder": 100, "elbow": 100, "wrist": 50, "mean": 250 / 3, "auc": 100 * (1 + (1 + 1 / 6) / 2 + 1 / 2) / 3}
    )
    assert found.rows["PCK@0.1"] == pytest.approx(
        {"shoulder": 100, "elbow": 50, "wrist": 50, "mean": 200 / 3, "auc": 200 / 3}
    )
    assert found.as_json()["wrist@0.05"] == 50
    assert (found.people, found.as_json()["threshold"]) == (2, 0.2)


def test_a_keypoint_that_nobody_annotated_is_in_no_mean(truth: Path) -> None:
    content = arm_annotations(2)
    for person in content["annotations"]:
        person["keypoints"][6:] = [0, 0, 0]
    found = pck.score(ARM, write(truth, content), write(truth.parent / "p.json", [entry(0), entry(1)]))
    assert math.isnan(found.rows["PCK@0.2"]["wrist"]) and found.rows["PCK@0.2"]["mean"] == 100
    assert found.as_json()["wrist"] is None


def test_one_side_of_the_split(truth: Path) -> None:
    content = arm_annotations(2)
    content["images"][0]["split"], content["images"][1]["split"] = "train", "test"
    predictions = [entry(1, keypoints=[0.0] * 9)]
    write(truth, content)
    refused(truth, predictions, "1 of 2 people", "first 100 (image 0)", "--split test")
    refused(truth, predictions, "1 of 1 people", side="train")
    file = truth.parent / "p.json"
    assert pck.score(ARM, truth, file, side="test").rows["PCK@0.2"]["mean"] == 0
    left = pck.score(ARM, truth, file, on_bad="skip")
    assert (left.people, left.left_out) == (1, 1)
    write(file, [entry(0), entry(1, keypoints=[0.0] * 9)])
    assert pck.score(ARM, truth, file, side="train").rows["PCK@0.2"]["mean"] == 100


def test_several_people_in_an_image(truth: Path) -> None:
    content = arm_annotations(1)
    content["annotations"].append({**content["annotations"][0], "id": 5, "keypoints": [0, 0, 2] * 3})
    write(truth, content)
    refused(truth, [entry()], "annotation_id", "100, 5")
    refused(truth, [entry(annotation_id=6)], "'6'", "100, 5")
    refused(truth, [entry(annotation_id=5), entry(annotation_id="5")], "entry 1", "second prediction for 5")
    file = write(truth.parent / "p.json", [entry(annotation_id=5), entry(annotation_id=100)])
    assert pck.score(ARM, truth, file).rows["PCK@0.2"]["shoulder"] == 50


@pytest.mark.parametrize(
    ("predictions", "words"),
    [
        ([entry(0)], ["1 of 2 people", "first 101 (image 1)"]),
        ([entry(0), entry(9)], ["entry 1", "image_id 9"]),
        ([entry(0), entry("0")], ["entry 1", "image_id '0'"]),
        ([entry(0), entry(0)], ["entry 1", "second prediction"]),
        ([entry(0, keypoints=POINTS * 2)], ["18 numbers", "expected 9", "3 keypoints of arm"]),
        ([entry(0, keypoints=POINTS[:-1])], ["8 numbers"]),
        ([entry(0, keypoints=[*POINTS[:-1], None])], ["no list of numbers"]),
        ([entry(0, keypoints=[*POINTS[:-1], [1]])], ["no list of numbers"]),
        ([entry(0, keypoints=[*POINTS[:-1], 10**400])], ["no list of numbers"]),
        ([entry(0, keypoints=[math.nan, *POINTS[1:]])], ["entry 0", "shoulder", "nan"]),
        ([entry(0, keypoints=[*POINTS[:6], 1, math.inf, 1])], ["wrist", "inf"]),
        ([entry(0, score=math.nan)], ["score=nan"]),
        ([entry(0, score="1")], ["score=1"]),
        ([entry(0, category_id=None)], ["category_id=None"]),
        ([entry(0, image_id=[1])], ["image_id=[1]"]),
        ([{"image_id": 0}], ["no 'category_id'"]),
        ([5], ["entry 0", "found 5"]),
        ([], ["no prediction"]),
        ({"a": 1}, ["JSON dict", "image_id"]),
        ("[", ["not valid JSON"]),
        ("[" * 100_000, ["not valid JSON"]),
    ],
)
def test_what_is_no_predictions_file_is_one_line(truth: Path, predictions: Any, words: list[str]) -> None:
    refused(truth, predictions, "p.json", *words)


def test_a_bad_annotation_is_named_or_left_out(truth: Path) -> None:
    content = arm_annotations(3)
    content["annotations"][1]["bbox"] = [1, 2, 0, 0]
    write(truth, content)
    with pytest.raises(UserError, match=r"truth\.json: annotation 101: box .* has no area"):
        pck.score(ARM, truth, write(truth.parent / "p.json", [entry(0), entry(2)]))
    left = pck.score(ARM, truth, truth.parent / "p.json", on_bad="skip")
    assert (left.people, left.left_out) == (2, 1)
