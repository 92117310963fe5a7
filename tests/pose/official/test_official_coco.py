"""OKS AP: COCO's own code on an example worked by hand, and what it would not survive said in a line."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import load_spec
from fedgh_app.pose.data.split import split_records
from fedgh_app.pose.official import coco
from fedgh_app.pose.official.results import Result
from fedgh_app.pose.readers import read_truth

COCO = load_spec("coco")
AREA = 100.0 * 100.0
NOSE = 0.026  # COCO's sigma of the nose


def person(image: int, nose: tuple[float, float], number: int, **changes: Any) -> dict[str, Any]:
    """Somebody of 100 x 100 pixels, of whom the nose alone is annotated, in the middle of the box."""
    keypoints = [*nose, 2, *[0, 0, 0] * 16]
    box = [nose[0] - 50, nose[1] - 50, 100, 100]
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "keypoints": keypoints,
        "num_keypoints": 1,
        "bbox": box,
        "area": AREA,
        "iscrowd": 0,
    } | changes


def prediction(image: int, nose: tuple[float, float], score: float, **changes: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "keypoints": [*nose, 1.0] * 17, "score": score} | changes


def scored(folder: Path, people: Any, predictions: Any, images: Any = None, **options: Any) -> Any:
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2)] if images is None else images
    truth = {"images": images, "annotations": people, "categories": [{"id": 1, "keypoints": list(COCO.keypoints)}]}
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "p.json").write_text(json.dumps(predictions))
    return coco.score(COCO, folder / "truth.json", folder / "p.json", **options)


def off_by(similarity: float) -> float:
    """How far a nose has to be off for this OKS: exp(-d^2 / (2 area (2 sigma)^2))."""
    return math.sqrt(-math.log(similarity) * 2 * AREA * (2 * NOSE) ** 2)


def test_two_people_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The first is met exactly, the second with an OKS of 0.72: right at 0.50 ... 0.70, wrong at 0.75 ... 0.95. Where it
    # is wrong, recall ends at a half, which 51 of the 101 points of the curve reach, at precision 1.
    people = [person(1, (100, 100), 0), person(1, (300, 100), 7)]
    found = scored(
        tmp_path, people, [prediction(1, (300 + off_by(0.72), 100), 0.8), prediction(1, (100, 100), 0.9)]
    ).as_json()
    half = 100 * 51 / 101
    assert (found["AP"], found["AP50"], found["AP75"]) == pytest.approx(((100 + half) / 2, 100, half))
    assert (found["AR"], found["AR50"], found["AR75"]) == pytest.approx((75, 100, 50))
    assert (found["APL"], found["ARL"]) == pytest.approx((found["AP"], found["AR"]))
    assert (found["APM"], found["ARM"], found["people"]) == (None, None, 2)  # nobody of that size
    assert capsys.readouterr().out == ""


def test_scores_order_the_predictions(tmp_path: Path) -> None:
    # Nobody is where the better score points: precision is 1/2 up to full recall.
    found = scored(
        tmp_path, [person(1, (100, 100), 1)], [prediction(1, (400, 400), 0.9), prediction(1, (100, 100), 0.1)]
    )
    assert found.rows["OKS"]["AP"] == pytest.approx(50)


def test_crowds_and_people_without_keypoints_cost_nothing(tmp_path: Path) -> None:
    people = [
        person(1, (100, 100), 1),
        person(1, (400, 100), 2, iscrowd=1),
        person(2, (100, 100), 3, num_keypoints=0, keypoints=[0] * 51),
    ]
    predictions = [prediction(1, (100, 100), 0.5), prediction(1, (400, 100), 0.9), prediction(2, (100, 100), 0.9)]
    found = scored(tmp_path, people, predictions)
    assert (found.rows["OKS"]["AP"], found.people) == (pytest.approx(100), 1)


def test_one_side_of_the_split(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "1.jpg", "split": "train"}, {"id": 2, "file_name": "2.jpg", "split": "test"}]
    people = [person(1, (100, 100), 1), person(2, (100, 100), 2)]
    predictions = [prediction(1, (400, 400), 0.9), prediction(2, (100, 100), 0.9)]
    found = {side: scored(tmp_path, people, predictions, images, side=side) for side in ("all", "train", "test")}
    assert [round(score.rows["OKS"]["AR"], 6) for score in found.values()] == [50, 0, 100]
    assert [score.people for score in found.values()] == [2, 1, 1]
    with pytest.raises(UserError, match=r"truth\.json: found no image in split test"):
        scored(tmp_path, people[:1], predictions[:1], images[:1], side="test")


def test_images_are_on_the_side_on_which_the_reader_puts_their_people(tmp_path: Path) -> None:
    images: list[dict[str, Any]] = [
        *({"id": number, "file_name": f"{number}.jpg", "source": None} for number in range(20)),
        {"id": 20, "file_name": "20.jpg", "source": "film", "split": "test"},
        {"id": 21, "file_name": "21.jpg", "source": "film"},
        {"id": 22, "file_name": "22.jpg", "source": "video", "split": "train"},
        {"id": 23, "file_name": "23.jpg", "source": "video", "split": None},
    ]
    (tmp_path / "images").mkdir()
    for image in images:
        (tmp_path / "images" / image["file_name"]).touch()
    file = tmp_path / "truth.json"
    people = [person(image["id"], (100, 100), image["id"]) for image in images]
    file.write_text(json.dumps({"images": images, "annotations": people}))
    records, _ = read_truth(COCO, file)
    expected: dict[str, list[int]] = {"train": [], "test": []}
    for record, split in zip(records, split_records(records, COCO), strict=True):
        expected[split].append(record.image_id)
    for side in ("train", "test"):
        assert list(coco.images_of(COCO, file, tmp_path, side=side)) == expected[side]
    assert {20, 21} <= set(expected["test"]) and {22, 23} <= set(expected["train"])
    assert min(expected["test"]) < 20  # by the hash of the file's name, since `source` says nothing
    images[21]["split"] = "train"
    file.write_text(json.dumps({"images": images, "annotations": people}))
    with pytest.raises(UserError, match=r"truth\.json: image 21: group 'film' is in train and in test"):
        coco.images_of(COCO, file, tmp_path, side="test")


@pytest.mark.parametrize(
    ("predictions", "words"),
    [
        ([prediction(5, (1, 1), 1)], r"p\.json: entry 0: found image_id 5, expected"),
        ([prediction(1, (1, 1), 1, category_id=18)], r"p\.json: entry 0: found category_id 18, expected 1"),
        ([prediction(1, (1, 1), 1, keypoints=[1.0] * 42)], r"p\.json: entry 0: found 42 numbers .* expected 51"),
        ([prediction(1, (1, math.nan), 1)], r"p\.json: entry 0: found nose at \[1.0, nan"),
        ([], r"p\.json: found no prediction"),
    ],
)
def test_bad_predictions_are_one_line(tmp_path: Path, predictions: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        scored(tmp_path, [person(1, (100, 100), 1)], predictions)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"keypoints": [1, 2, 2]}, "found 3 numbers, expected 51"),
        ({"keypoints": None}, "keypoints: expected numbers"),
        ({"area": math.inf}, "area: expected finite"),
        ({"bbox": [1, 2]}, r"bbox: expected shape \(4,\)"),
        ({"image_id": 9}, "image_id 9 is not among"),
        ({"image_id": [1]}, "is not among"),
    ],
)
def test_a_bad_annotation_is_named_or_left_out(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    people = [person(1, (100, 100), 1), person(1, (300, 300), 12, **changes)]
    predictions = [prediction(1, (100, 100), 1)]
    with pytest.raises(UserError, match=rf"truth\.json: annotation 12: .*{words}"):
        scored(tmp_path, people, predictions)
    found = scored(tmp_path, people, predictions, on_bad="skip")
    assert (found.rows["OKS"]["AP"], found.left_out) == (pytest.approx(100), 1)


def test_what_oks_needs_is_said(tmp_path: Path) -> None:
    whole = person(1, (100, 100), 1)
    for key in ("area", "iscrowd", "bbox", "num_keypoints", "keypoints"):
        with pytest.raises(UserError, match=f"annotation 1: found no '{key}'"):
            scored(tmp_path, [{name: value for name, value in whole.items() if name != key}], [])
    for images in (["a"], [{"id": None}]):
        with pytest.raises(UserError, match=r"truth\.json: images: found"):
            scored(tmp_path, [whole], [], images)
    (tmp_path / "p.json").write_text("[]")
    for content, words in (("[]", "COCO annotations"), ("x", "not valid JSON"), ('{"images": []}', "annotations")):
        (tmp_path / "truth.json").write_text(content)
        with pytest.raises(UserError, match=rf"truth\.json: .*{words}"):
            coco.score(COCO, tmp_path / "truth.json", tmp_path / "p.json")
    keypoints = [{"id": 1, "keypoints": ["nose", "tail"]}]
    (tmp_path / "truth.json").write_text(json.dumps({"images": [], "annotations": [], "categories": keypoints}))
    with pytest.raises(UserError, match="COCO's 17"):
        coco.score(COCO, tmp_path / "truth.json", tmp_path / "p.json")


def test_double_predictions_go() -> None:
    def result(x: float, score: float) -> Result:
        return Result(1, 1, np.full((17, 2), x), np.ones(17), score)

    # 3 px apart every joint of the second is where the first has it; the third is somebody else.
    results = [result(103, 0.5), result(100, 0.9), result(300, 0.7), result(303, 0.1)]
    areas = np.full(4, AREA)
    assert coco.suppress(results, areas, 0.9) == [1, 2]
    assert coco.suppress(results, areas, 1.0) == [1, 2, 0, 3]
    assert coco.suppress(results, areas / 100, 0.9) == [1, 2, 0, 3]  # far apart for people of 10 x 10
    assert coco.suppress(results[:1], areas[:1], 0.9) == [0]


def test_similarity_is_cocos_own(tmp_path: Path) -> None:
    """Suppression starts where COCOeval's OKS of the same two people passes the threshold."""
    nose = off_by(0.72)
    first = Result(1, 1, np.zeros((17, 2)), np.ones(17), 0.9)
    second = Result(1, 1, np.array([[nose, 0.0], *[[0.0, 0.0]] * 16]), np.ones(17), 0.8)
    similarity = (0.72 + 16) / 17
    assert coco.suppress([first, second], np.full(2, AREA), similarity + 1e-9) == [0, 1]
    assert coco.suppress([first, second], np.full(2, AREA), similarity - 1e-9) == [0]


def test_the_truth_of_real_images_scores_100(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "coco" / "annotations.json"
    people = [entry for entry in json.loads(file.read_text())["annotations"] if entry["num_keypoints"] > 0]
    results = [{key: entry[key] for key in ("image_id", "category_id", "keypoints")} | {"score": 1} for entry in people]
    (tmp_path / "p.json").write_text(json.dumps(results))
    found = coco.score(COCO, file, tmp_path / "p.json")
    assert found.people == 12
    assert found.rows["OKS"]["AP"] == pytest.approx(100)
    moved = [
        {**entry, "keypoints": [x + 8 * (place % 3 == 0) for place, x in enumerate(entry["keypoints"])]}
        for entry in results
    ]
    (tmp_path / "p.json").write_text(json.dumps(moved))
    assert 0 < coco.score(COCO, file, tmp_path / "p.json").rows["OKS"]["AP"] < 95
