"""A run's model by official protocols: the numbers, the files, and what is said where something does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from written_run import write_run

from fedgh_app.config.evaluation import evaluated_on
from fedgh_app.errors import UserError
from fedgh_app.pose import official
from fedgh_app.pose.data.batches import Batches
from fedgh_app.pose.data.cache import open_cache
from fedgh_app.pose.data.records import load_spec
from fedgh_app.pose.evaluation import official_run
from fedgh_app.pose.evaluation.official_run import Evaluation
from fedgh_app.pose.evaluation.people import read_detections
from fedgh_app.pose.evaluation.tally import scores, tally
from fedgh_app.pose.training import evaluate
from fedgh_app.runs.opening import load_run
from fedgh_app.task import Trained

FILES = ["errors.png", "evaluation.json", "predictions.json", "worst.png"]


def evaluate_run(run: Trained, overrides: Sequence[str] = (), **options: Any) -> Evaluation:
    """As the command calls it."""
    return official_run.evaluate_run(run, evaluated_on(run.values, overrides), **options)


@pytest.fixture
def arm_run(toy: list[str], tmp_path: Path) -> Trained:
    write_run(tmp_path / "run", toy)
    return load_run(tmp_path / "run")


def test_the_number_is_that_of_training_and_of_the_written_predictions(arm_run: Trained, tmp_path: Path) -> None:
    found = evaluate_run(arm_run, out=tmp_path / "out")
    dataset, spec = arm_run.dataset, arm_run.spec
    cache = open_cache(spec, Path(dataset["root"]), input_size=(32, 32), directory=tmp_path / "cache")
    batches = Batches(cache, cache.indices("test"), batch_size=32, seed=0, shuffle=False)
    counted = scores(tally(evaluate(arm_run.model, batches, arm_run.loss), spec.predicts, 0.2))
    written = found.score.as_json()
    assert found.score.people == len(cache.indices("test"))
    assert written["mean"] == pytest.approx(100 * counted.score, abs=1e-6)
    assert {name: written[name] for name in spec.predicts} == pytest.approx(
        {name: 100 * value for name, value in counted.parts.items()}, abs=1e-6
    )
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == FILES
    for name in ("errors.png", "worst.png"):
        assert np.std(cv2.imread(str(tmp_path / "out" / name))) > 10
    assert json.loads((tmp_path / "out/evaluation.json").read_text()) == found.as_json()
    assert found.again is not None
    words = found.again.split()
    assert words[:3] == ["fedgh", "score", "arm"] and words[-2:] == ["--split", "test"]
    again = official.score("arm", Path(words[4]), Path(words[6]), side="test")
    assert again == found.score
    assert evaluate_run(arm_run).score == found.score  # without files


def test_how_maps_are_read_is_a_value(arm_run: Trained) -> None:
    readings = ([], ["evaluate.decoding=argmax"], ["evaluate.flip_test=true"])
    assert len({evaluate_run(arm_run, reading).score.rows["PCK@0.2"]["auc"] for reading in readings}) == 3


def test_another_data_set_is_looked_at_as_the_model_was_trained(arm_run: Trained) -> None:
    root = arm_run.dataset["root"]
    changes = ["dataset=lspet_arm", f"dataset.root={root}", "evaluate.decoding=dark"]
    values = evaluated_on(arm_run.values, changes)
    assert (values["dataset"]["spec"], values["dataset"]["input_size"]) == ("lspet_arm", [32, 32])
    assert (values["dataset"]["root"], values["evaluate"]["decoding"]) == (root, "dark")
    assert arm_run.values["evaluate"]["decoding"] == "quarter"
    values = evaluated_on(arm_run.values, ["dataset.input_size=[64,64]"])
    assert (values["dataset"]["root"], values["dataset"]["input_size"]) == (root, [64, 64])


def test_a_model_of_several_goes_by_its_file(toy: list[str], tmp_path: Path) -> None:
    write_run(tmp_path / "run", toy, "model.cluster-1.safetensors")
    about = evaluate_run(load_run(tmp_path / "run/model.cluster-1.safetensors")).as_json()
    assert (about["run"], about["model"]) == (str(tmp_path / "run"), "model.cluster-1.safetensors")


def test_what_does_not_fit_is_one_line(arm_run: Trained, tmp_path: Path) -> None:
    cases: list[tuple[list[str], dict[str, Any], str]] = [
        (
            ["dataset=lspet"],
            {},
            "right_ankle, .*, and 9 more, .* finds those of arm, shoulder, elbow, wrist",
        ),
        (["dataset=arm_lspet"], {}, "several data sets; expected one of them: arm or lspet"),
        (["seed=1"], {}, "seed=1: an evaluation does not depend on it"),
        (["evaluate.decoding=dork"], {}, "dork"),
        (["+dataset.foo=1"], {}, r"\+dataset\.foo=1: an evaluation adds and deletes no key"),
        (["++dataset.foo=1"], {}, r"\+\+dataset\.foo=1: an evaluation adds"),
        (["~evaluate.decoding"], {}, "~evaluate.decoding: an evaluation adds"),
        (["~dataset.root"], {}, "~dataset.root: an evaluation adds"),
        (["dataset.root=/nowhere"], {}, "/nowhere"),
        ([], {"side": "val"}, "--split val: expected all, train, test"),
        ([], {"detections": Path("d.json")}, "d.json: the protocol of arm does not match people"),
        ([], {"oks_nms": 0.0}, "--oks-nms 0.0"),
    ]
    for overrides, options, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            evaluate_run(arm_run, overrides, **options, out=tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_a_broken_image_leaves_nothing_half_written(toy: list[str], home: Path, tmp_path: Path) -> None:
    from fedgh_app.pose.arms.generated import generate

    root = tmp_path / "arms"
    generate(root, count=8, seed=1, image_size=(64, 64))
    write_run(tmp_path / "run", toy, root=root)
    run = load_run(tmp_path / "run")
    broken = sorted((root / "images").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(UserError, match=f"{broken.name}.*truncated"):
        evaluate_run(run, side="all", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run.values["dataset"]["on_bad"] = "skip"
    found = evaluate_run(run, side="all", out=tmp_path / "out")
    assert (found.score.people, found.score.left_out) == (7, 1)
    assert found.again is not None and found.again.endswith("--on-bad skip")
    with pytest.raises(UserError, match="holds files already"):
        evaluate_run(run, side="all", out=tmp_path / "out")
    for image in (root / "images").iterdir():
        image.write_bytes(b"")
    with pytest.raises(UserError, match="none of the images of 8 people"):
        evaluate_run(run, side="all")


def write_coco(root: Path) -> None:
    """Three images with two people, one and nobody."""
    spec = load_spec("coco")
    generator = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    for number in (1, 2, 3):
        pixels = generator.integers(0, 255, (120, 160, 3), dtype=np.uint8)
        cv2.imwrite(str(root / f"images/{number}.jpg"), pixels)
    people = [
        {
            "id": place,
            "image_id": image,
            "category_id": 1,
            "keypoints": np.column_stack([generator.uniform(x, x + 60, (17, 2)), np.full(17, 2)]).ravel().tolist(),
            "num_keypoints": 17,
            "bbox": [x, x, 60, 60],
            "area": 3600,
            "iscrowd": 0,
        }
        for place, (image, x) in enumerate([(1, 10), (1, 50), (2, 30)])
    ]
    images = [{"id": number, "file_name": f"{number}.jpg", "split": "test"} for number in (1, 2, 3)]
    content = {"images": images, "annotations": people, "categories": [{"id": 1, "keypoints": list(spec.keypoints)}]}
    (root / "annotations.json").write_text(json.dumps(content))


@pytest.fixture
def coco_run(toy: list[str], tmp_path: Path) -> Trained:
    """A model of COCO's 17 keypoints, and three images."""
    write_coco(tmp_path / "coco")
    write_run(tmp_path / "run", [*toy, "dataset=coco", "partition=iid"], root=tmp_path / "coco")
    return load_run(tmp_path / "run")


def detections(folder: Path, *entries: tuple[int, list[float], float], category: int = 1) -> Path:
    content = [{"image_id": i, "category_id": category, "bbox": box, "score": score} for i, box, score in entries]
    (folder / "detections.json").write_text(json.dumps(content))
    return folder / "detections.json"


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn: it takes longer than all the rest."""
    monkeypatch.setattr("fedgh_app.pose.evaluation.official_run.draw_errors", lambda *_: None)


@pytest.mark.usefixtures("no_pictures")
def test_coco_in_annotated_and_in_detected_boxes(coco_run: Trained, tmp_path: Path) -> None:
    truth = tmp_path / "coco/annotations.json"
    evaluate_run(coco_run, out=tmp_path / "first")
    content, known = (json.loads(file.read_text()) for file in (truth, tmp_path / "first/predictions.json"))
    for person, met in ((0, 0), (2, 2)):  # two of the three are met, so that there is something to score
        content["annotations"][person]["keypoints"] = np.add(known[met]["keypoints"], [0, 0, 1] * 17).tolist()
    for person in content["annotations"]:
        person["keypoints"][2::3] = [2] * 17
    truth.write_text(json.dumps(content))
    boxes = [(1, [10.0, 10, 60, 60], 0.5), (1, [50.0, 50, 60, 60], 0.5), (2, [30.0, 30, 60, 60], 0.5)]
    file = detections(tmp_path, *boxes)
    annotated = evaluate_run(coco_run, out=tmp_path / "a")
    detected = evaluate_run(coco_run, detections=file, oks_nms=1.0, out=tmp_path / "b")
    assert 30 < annotated.score.as_json()["AP"] < 100
    assert detected.score.as_json() == annotated.score.as_json()  # the same boxes, all equally sure
    first, second = (json.loads((tmp_path / name / "predictions.json").read_text()) for name in "ab")
    place = itemgetter("image_id", "keypoints")
    for one, other in zip(sorted(first, key=place), sorted(second, key=place), strict=True):
        assert one["keypoints"] == other["keypoints"]
        assert other["score"] == pytest.approx(one["score"] / 2)
        assert one["score"] == pytest.approx(np.mean(one["keypoints"][2::3]), abs=1e-4)
    for name, found in (("a", annotated), ("b", detected)):
        file = tmp_path / name / "predictions.json"
        assert official.score("coco", truth, file, side="test").as_json() == found.score.as_json()


@pytest.mark.usefixtures("no_pictures")
def test_double_detections_are_suppressed(coco_run: Trained, tmp_path: Path) -> None:
    box = [30.0, 30, 60, 60]
    file = detections(tmp_path, (2, box, 0.9), (2, box, 0.8), (3, box, 0.1))
    evaluate_run(coco_run, detections=file, out=tmp_path / "out")
    entries = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [(entry["image_id"], round(entry["score"] / np.mean(entry["keypoints"][2::3]), 2)) for entry in entries] == [
        (2, 0.9),
        (3, 0.1),
    ]


def test_bad_detections_are_one_line(coco_run: Trained, tmp_path: Path) -> None:
    box = [30.0, 30, 60, 60]
    cases: list[tuple[Any, str]] = [
        (detections(tmp_path, (9, box, 1)).read_text(), "entry 0: found image_id 9"),
        (detections(tmp_path, (1, box[:3], 1)).read_text(), r"entry 0: bbox: expected shape \(4,\)"),
        (detections(tmp_path, (1, [1.0, 1, 0, 5], 1)).read_text(), "the last two above 0"),
        (detections(tmp_path, (1, box, float("nan"))).read_text(), "score nan, expected a finite number"),
        (detections(tmp_path, (1, [500.0, 1, 5, 5], 1)).read_text(), r"1\.jpg: box 500,1,5,5"),
        (detections(tmp_path, (1, box, 1), category=2).read_text(), "found no person"),
        (
            '[{"image_id": 1, "category_id": 1, "bbox": [1], "score": null}]',
            "entry 0: expected COCO detections",
        ),
        ('[{"image_id": 1}]', "entry 0: expected COCO detections"),
        ("{}", "found a JSON dict"),
        ("", "not valid JSON"),
    ]
    for content, words in cases:
        (tmp_path / "detections.json").write_text(content)
        with pytest.raises(UserError, match=words):
            evaluate_run(coco_run, detections=tmp_path / "detections.json", out=tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="found nobody in split train"):
        evaluate_run(coco_run, side="train")
    with pytest.raises(UserError, match="0 images of split train"):
        evaluate_run(coco_run, side="train", detections=detections(tmp_path, (1, box, 1)))


def test_the_command(
    arm_run: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fedgh: Callable[..., int],
) -> None:
    run = str(arm_run.directory)
    monkeypatch.setattr("fedgh_app.pose.evaluation.official_run.draw_errors", lambda *_: None)
    assert fedgh("evaluate", run, "evaluate.flip_test=true", "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["flip_test"], about["split"], about["scores"]["people"]) == (True, "test", 16)
    assert fedgh("evaluate", run, "--out", str(tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert "PCK@0.2" in said and "16 people" in said and f"{tmp_path}/out/predictions.json --split test" in said
    assert fedgh("evaluate", str(tmp_path / "nowhere")) == 2
    assert "no such run directory" in capsys.readouterr().err


def test_detections_of_other_things_need_no_score(tmp_path: Path) -> None:
    person = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    other = {"image_id": 1, "category_id": 7, "bbox": None, "score": None}
    file = tmp_path / "detections.json"
    file.write_text(json.dumps([other, person]))
    (box,) = read_detections(file, {1})[1]
    assert box.sides.tolist() == [1, 2, 3, 4]
    file.write_text(json.dumps([person | {"score": None}]))
    with pytest.raises(UserError, match="entry 0: expected COCO detections"):
        read_detections(file, {1})
