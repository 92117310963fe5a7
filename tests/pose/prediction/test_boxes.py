import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgh_app.errors import UserError
from fedgh_app.pose.prediction.boxes import Box, parse_box, read_boxes

NAMES = ["000000000139.jpg", "a.png", "clip.mp4"]


def _file(folder: Path, content: Any) -> Path:
    path = folder / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def _sides(boxes: Any) -> list[list[float]]:
    return [box.sides.tolist() for box in boxes]


def test_annotations_go_by_the_name_of_their_image(tmp_path: Path) -> None:
    content = {
        "images": [
            {"id": 7, "file_name": "val2017/000000000139.jpg"},
            {"id": 8, "file_name": "elsewhere.jpg"},
            {"id": 9, "file_name": "clip.mp4", "frame": 3},
            {"id": 10, "file_name": "clip.mp4"},
        ],
        "annotations": [
            {"image_id": 7, "bbox": [1, 2, 3, 4], "category_id": 1},
            {"image_id": 7, "bbox": [5, 6, 7, 8], "category_id": 1, "iscrowd": 1},
            {"image_id": 7, "bbox": [5, 6, 7.5, 8], "category_id": 1, "score": 0.25},
            {"image_id": 7, "bbox": [0, 0, 1, 1], "category_id": 18},
            {"image_id": 8, "bbox": [0, 0, 1, 1], "category_id": 1},
            {"image_id": 9, "bbox": [9, 9, 9, 9], "category_id": 1},
            {"image_id": 10, "bbox": [4, 4, 4, 4], "category_id": 1},
        ],
    }
    boxes = read_boxes(_file(tmp_path, content), NAMES)
    assert _sides(boxes[NAMES[0], None]) == [[1, 2, 3, 4], [5, 6, 7.5, 8]]
    assert [box.score for box in boxes[NAMES[0], None]] == [None, 0.25]
    assert _sides(boxes["clip.mp4", 3]) == [[9, 9, 9, 9]]
    assert _sides(boxes["clip.mp4", 2]) == [[4, 4, 4, 4]]
    assert boxes["a.png", None] == ()


def test_detections_name_their_image_by_file_or_by_its_number(tmp_path: Path) -> None:
    content = [
        {"image_id": 139, "bbox": [1, 2, 3, 4], "category_id": 1, "score": 0.9},
        {"image_id": "a", "bbox": [2, 2, 3, 4], "category_id": 1, "score": 0.8},
        {"file_name": "x/a.png", "bbox": [3, 2, 3, 4], "score": 0.7, "category_id": 1},
        {"image_id": 140, "bbox": [3, 2, 3, 4]},
    ]
    boxes = read_boxes(_file(tmp_path, content), NAMES)
    assert _sides(boxes[NAMES[0], None]) == [[1, 2, 3, 4]]
    assert _sides(boxes["a.png", None]) == [[2, 2, 3, 4], [3, 2, 3, 4]]


def test_boxes_of_low_score_are_left_out(tmp_path: Path) -> None:
    content = [{"file_name": "a.png", "bbox": [1, 2, 3, n], "score": n / 10} for n in (1, 5, 9)]
    path = _file(tmp_path, [*content, {"file_name": "a.png", "bbox": [1, 2, 3, 4]}])
    assert _sides(read_boxes(path, NAMES, 0.5)["a.png", None]) == [[1, 2, 3, 5], [1, 2, 3, 9], [1, 2, 3, 4]]
    with pytest.raises(UserError, match=r"has no box with a score of at least 0\.95 for any"):
        read_boxes(_file(tmp_path, content), NAMES, 0.95)


def test_a_number_that_two_images_have_stands_for_neither(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no box for any of the 2 inputs"):
        read_boxes(_file(tmp_path, [{"image_id": 1, "bbox": [1, 2, 3, 4]}]), ["001.jpg", "1.png"])


def test_the_only_category_counts_whatever_its_number(tmp_path: Path) -> None:
    boxes = read_boxes(_file(tmp_path, [{"file_name": "a.png", "bbox": [1, 2, 3, 4], "category_id": 5}]), NAMES)
    assert _sides(boxes["a.png", None]) == [[1, 2, 3, 4]]


def test_a_dog_is_nobody_also_where_the_only_people_are_elsewhere(tmp_path: Path) -> None:
    dog = {"file_name": "a.png", "bbox": [1, 2, 3, 4], "category_id": 18, "score": 0.9}
    elsewhere = {"file_name": "b.png", "bbox": [5, 6, 7, 8], "category_id": 1, "score": 0.9}
    unsure = {"file_name": "clip.mp4", "bbox": [5, 6, 7, 8], "category_id": 1, "score": 0.1}
    for person in (elsewhere, unsure):
        with pytest.raises(UserError, match=r"has no box of a person \(category_id 1\) with a score of at least 0\.5"):
            read_boxes(_file(tmp_path, [dog, person]), NAMES, 0.5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[{", "not valid JSON"),
        ("3", "expected COCO annotations or a list"),
        ({"images": []}, "annotations: expected a list"),
        ([3], "entry 0: expected an object"),
        ({"images": [3], "annotations": []}, "image 0: expected an object"),
        ([{"image_id": 139}], "entry 0: bbox: expected"),
        ([{"image_id": 139, "bbox": [1, 2, 3]}], "entry 0: bbox: expected"),
        ([{"image_id": 139, "bbox": [1, 2, 3, 0]}], "the last two above 0"),
        ([{"image_id": 139, "bbox": [1, 2, 3, float("nan")]}], "the last two above 0"),
        ([{"image_id": [139], "bbox": [1, 2, 3, 4]}], "entry 0: image_id [139], expected a number or a name"),
        ([{"image_id": 139, "bbox": [1, 2, 3, 4], "category_id": [1]}], "entry 0: category_id [1], expected a number"),
        (
            {"images": [], "annotations": [{"image_id": [1], "bbox": [1, 2, 3, 4]}]},
            "entry 0: image_id [1], expected a number or a name",
        ),
        ([{"image_id": 139, "bbox": [1, 2, 3, 4], "score": "high"}], "entry 0: score: expected"),
        ([{"image_id": 139, "bbox": [1, 2, 3, 4], "score": [0.5]}], "entry 0: score: expected"),
        ([{"image_id": 139, "bbox": [1, 2, 3, 4], "score": float("nan")}], "entry 0: score nan, expected a finite"),
        ([{"file_name": "b.png", "bbox": [1, 2, 3, 4]}], "has no box for any of the 3 inputs"),
        (
            {"images": [{"id": 1, "file_name": "l/a.png"}, {"id": 2, "file_name": "r/a.png"}], "annotations": []},
            "l/a.png and r/a.png have the same name",
        ),
    ],
)
def test_a_file_that_holds_no_boxes_is_one_line(tmp_path: Path, content: Any, words: str) -> None:
    path = _file(tmp_path, content)
    with pytest.raises(UserError) as error:
        read_boxes(path, NAMES)
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["1,2,3", "1,2,x,4", "", "1,2,0,4", "1,2,inf,4"])
def test_a_box_is_four_numbers(text: str) -> None:
    assert parse_box("1,2.5,3,4").sides.tolist() == [1, 2.5, 3, 4]
    with pytest.raises(UserError, match=f"--box {text}"):
        parse_box(text)


@pytest.mark.parametrize("sides", [(100, 0, 5, 5), (0, 60, 5, 5), (-5, 0, 5, 5), (0, -9, 5, 8), (0, 0, 1e7, 1e7)])
def test_a_box_outside_its_image_is_refused(sides: tuple[float, ...]) -> None:
    Box(np.array([-5, -5, 6, 6], np.float32)).check("a.png", 100, 60)
    with pytest.raises(UserError, match=r"a\.png: box .* does not lie in the 100x60 image"):
        Box(np.array(sides, np.float32)).check("a.png", 100, 60)
