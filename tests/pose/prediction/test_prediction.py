"""What the command draws and writes, by a network that finds dots of known colours: they must be where they are."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from dots import Dots, dotted, predictor, write
from pycocotools.coco import COCO
from torch import Tensor
from written_run import write_run

from fedgh_app.errors import UserError
from fedgh_app.pose.data.batches import Batches
from fedgh_app.pose.data.cache import open_cache
from fedgh_app.pose.data.crops import apply_affine, invert_affine, similarity_matrix
from fedgh_app.pose.data.records import load_spec
from fedgh_app.pose.models.decoding import Dark, MassAtPeak, argmax, decoder, peak_height, quarter
from fedgh_app.pose.prediction.boxes import Box, Boxes
from fedgh_app.pose.prediction.prediction import (
    Frame,
    Predictor,
    Source,
    asked_boxes,
    find_sources,
    predict_all,
    predictor_of,
)
from fedgh_app.pose.training import evaluate
from fedgh_app.runs.opening import load_run

ARM = load_spec("arm")


def read(folder: Path) -> tuple[list[dict], np.ndarray]:
    """The images of predictions.json, and each person's keypoints (N, J, 3)."""
    content = json.loads((folder / "predictions.json").read_text())
    return content["images"], np.array([entry["keypoints"] for entry in content["annotations"]]).reshape(-1, 3, 3)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    write(folder / "wide.png", dotted(np.array([[30, 50], [150, 40], [280, 90]]), 300, 120))
    write(folder / "tall.jpg", dotted(np.array([[40, 30], [50, 150], [20, 260]]), 80, 290))
    (folder / "notes.txt").write_text("no image")
    (folder / "._wide.png").write_bytes(b"what macOS leaves behind")
    return folder


def test_keypoints_are_found_where_they_are_in_the_original_image(photos: Path, tmp_path: Path) -> None:
    counts = predict_all(predictor(), find_sources([photos]), tmp_path / "out")
    assert str(counts) == "2 people in 2 images"
    images, found = read(tmp_path / "out")
    assert [(i["file_name"], i["width"], i["height"]) for i in images] == [
        ("tall.jpg", 80, 290),
        ("wide.png", 300, 120),
    ]
    truth = np.array([[[40, 30], [50, 150], [20, 260]], [[30, 50], [150, 40], [280, 90]]])
    # An input pixel is 3.8 pixels of the tall image and 5.9 of the wide one.
    assert np.abs(found[0, :, :2] - truth[0]).max() < 3.8
    assert np.abs(found[1, :, :2] - truth[1]).max() < 5.9
    assert (found[..., 2] > 0.25).all() and (found[..., 2] <= 1).all()
    for name in ("tall.jpg", "wide.png"):
        before, after = cv2.imread(str(photos / name)), cv2.imread(str(tmp_path / "out" / name))
        assert before.shape == after.shape
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.json", "tall.jpg", "wide.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_each_box_is_a_person(tmp_path: Path) -> None:
    arms = np.array([[[20, 20], [40, 30], [30, 60]], [[160, 30], [140, 60], [165, 80]]])
    first, second = (dotted(arm, 200, 100, radius=4) for arm in arms)
    image = np.where((first != 128).any(-1, keepdims=True), first, second)
    source = Source(write(tmp_path / "two.png", image))
    boxes = asked_boxes([source], None, ["10,10,45,60", "125,20,50,70"])
    model = Predictor(Dots(blur=9), ARM, (96, 64), quarter, peak_height, torch.device("cpu"))
    predict_all(model, [source], tmp_path / "out", boxes=boxes)
    _, found = read(tmp_path / "out")
    assert np.abs(found[..., :2] - arms).max() < 0.8
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]
    assert [entry["bbox"] for entry in entries] == [[10, 10, 45, 60], [125, 20, 50, 70]]
    boxes = Boxes({("two.png", None): [Box(np.array([10, 10, 45, 60], np.float32), 0.5)]})
    predict_all(model, [source], tmp_path / "scored", boxes=boxes)
    scored = json.loads((tmp_path / "scored" / "predictions.json").read_text())["annotations"]
    assert scored[0]["score"] == pytest.approx(0.5 * entries[0]["score"], abs=1e-3)


def test_pycocotools_reads_the_file(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict_all(predictor(), find_sources([photos]), tmp_path / "out", info={"made_by": "me"})
    coco = COCO(str(tmp_path / "out" / "predictions.json"))
    assert coco.dataset["info"] == {"made_by": "me", "videos": []}
    results = coco.loadRes([dict(entry) for entry in coco.dataset["annotations"]])
    assert len(results.anns) == 2 and coco.loadCats(1)[0]["keypoints"] == list(ARM.keypoints)
    assert coco.loadCats(1)[0]["skeleton"] == [[1, 2], [2, 3]]


def write_clip(path: Path, frames: int = 10) -> np.ndarray:
    """A wrist that moves right by 6 pixels a frame; its places (n, 2)."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, (128, 96))
    wrists = np.array([[40 + 6 * number, 70] for number in range(frames)])
    for wrist in wrists:
        writer.write(np.ascontiguousarray(dotted(np.array([[30, 20], [60, 40], wrist]), 128, 96)[..., ::-1]))
    writer.release()
    return wrists


def test_a_video_becomes_a_video_of_the_same_rate(tmp_path: Path) -> None:
    wrists = write_clip(tmp_path / "clip.avi")
    counts = predict_all(predictor(batch_size=4), find_sources([tmp_path / "clip.avi"]), tmp_path / "out")
    assert str(counts).startswith("10 people in 10 frames of 1 video, written as MPEG-4")
    images, found = read(tmp_path / "out")
    assert [image["frame"] for image in images] == list(range(10))
    assert np.abs(found[:, 2, :2] - wrists).max() < 2.5  # an input pixel is 2.5 of the frame's
    info = json.loads((tmp_path / "out" / "predictions.json").read_text())["info"]
    assert info["videos"] == [{"file_name": "clip.avi", "written": "clip.mp4", "frame_rate": 12.5}]
    capture = cv2.VideoCapture(str(tmp_path / "out" / "clip.mp4"))
    assert (capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)) == (12.5, 10)
    # The predictions are boxes by frame for the next model.
    boxes = asked_boxes(find_sources([tmp_path / "clip.avi"]), tmp_path / "out" / "predictions.json", [])
    assert boxes is not None and boxes["clip.avi", 9][0].sides.tolist() == [0, 0, 128, 96]


def test_frames_wait_for_no_more_than_a_batch_and_passes_are_full() -> None:
    given = 0

    def frames() -> Iterator[Frame]:
        nonlocal given
        for number in range(10):
            given += 1
            yield Frame(Source(Path("a.mp4")), number, np.zeros((20, 20, 3), np.uint8), [Box(np.array([0, 0, 20, 20]))])

    model = predictor(batch_size=4)
    ahead, passes = [], []
    model.model.register_forward_hook(lambda _, given, __: passes.append(len(given[0])))
    for done, (frame, people) in enumerate(model(frames())):
        assert frame.number == done and len(people) == 1
        ahead.append(given - done)
    assert max(ahead) == 4
    assert passes == [4, 4, 2]


def test_crops_do_not_depend_on_the_batch(photos: Path, tmp_path: Path) -> None:
    for size in (1, 2):
        predict_all(predictor(batch_size=size), find_sources([photos]), tmp_path / str(size))
    assert (tmp_path / "1" / "predictions.json").read_text() == (tmp_path / "2" / "predictions.json").read_text()


def test_an_image_without_a_box_has_no_people(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps([{"file_name": "wide.png", "bbox": [0, 0, 300, 120]}]))
    sources = find_sources([photos])
    counts = predict_all(predictor(), sources, tmp_path / "out", boxes=asked_boxes(sources, file, []))
    assert (counts.images, counts.people) == (2, 1)


def test_unsure_keypoints_are_fainter_or_left_out(tmp_path: Path) -> None:
    class Unsure(Dots):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * torch.tensor([1.0, 1.0, 0.2])[:, None, None]

    points = np.array([[30, 50], [150, 40], [250, 90]])
    source = Source(write(tmp_path / "a.png", dotted(points, 300, 120, radius=15)))
    model = Predictor(Unsure(), ARM, (96, 64), quarter, peak_height, torch.device("cpu"))
    drawn = {}
    for name, least in (("all", 0.0), ("sure", 0.3)):
        predict_all(model, [source], tmp_path / name, min_score=least)
        drawn[name] = cv2.imread(str(tmp_path / name / "a.png")).astype(int)
    image = cv2.imread(str(source.path)).astype(int)
    middle = slice(60, 70), slice(190, 210)  # halfway from the elbow to the wrist
    assert (drawn["sure"][middle] == image[middle]).all()
    faint = np.abs(drawn["all"][middle] - image[middle]).max()
    sure = np.abs(drawn["all"][40:50, 80:100] - image[40:50, 80:100]).max()
    assert 20 < faint < 0.5 * sure
    assert read(tmp_path / "sure")[1].shape == (1, 3, 3)  # written all the same


def _assert_refused(tmp_path: Path, words: str, work) -> None:
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(UserError) as error:
        work()
    assert words in str(error.value) and "\n" not in str(error.value)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before  # nothing half-written


def test_a_video_that_breaks_off_leaves_nothing(tmp_path: Path, photos: Path) -> None:
    write_clip(tmp_path / "clip.avi", frames=20)
    whole = (tmp_path / "clip.avi").read_bytes()
    (tmp_path / "clip.avi").write_bytes(whole[: len(whole) // 2])
    sources = find_sources([photos, tmp_path / "clip.avi"])
    _assert_refused(
        tmp_path,
        "clip.avi: video breaks off at frame ",
        lambda: predict_all(predictor(batch_size=2), sources, tmp_path / "out"),
    )


def test_an_image_that_is_none_leaves_nothing(tmp_path: Path, photos: Path) -> None:
    (photos / "z.jpg").write_text("not an image")
    _assert_refused(
        tmp_path, "z.jpg: not an image", lambda: predict_all(predictor(1), find_sources([photos]), tmp_path / "out")
    )


def test_a_box_outside_its_image_leaves_nothing(tmp_path: Path, photos: Path) -> None:
    sources = [Source(photos / "wide.png")]
    boxes = asked_boxes(sources, None, ["0,0,50,50", "400,0,50,50"])
    _assert_refused(
        tmp_path,
        "wide.png: box 400,0,50,50 does not lie in the 300x120 image",
        lambda: predict_all(predictor(), sources, tmp_path / "out", boxes=boxes),
    )


def test_an_output_that_is_a_file_or_holds_something_is_refused(tmp_path: Path, photos: Path) -> None:
    sources = find_sources([photos])
    for out, words in ((photos, "holds files already"), (photos / "wide.png", "is a file")):
        _assert_refused(tmp_path, f"--out {out}: {words}", lambda out=out: predict_all(predictor(), sources, out))
    (tmp_path / "empty").mkdir()
    predict_all(predictor(), sources, tmp_path / "empty")
    assert len(list((tmp_path / "empty").iterdir())) == 3
    blocked = photos / "wide.png" / "below"
    _assert_refused(tmp_path, f"{blocked}: cannot be written", lambda: predict_all(predictor(), sources, blocked))


def test_a_picture_that_cannot_be_written_is_told_by_its_place_in_the_end(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    out, sources = tmp_path / "out", [Source(photos / "wide.png")]
    words = f"{out / 'wide.png'}: picture cannot be written: No space left on device"
    _assert_refused(tmp_path, words, lambda: predict_all(predictor(), sources, out))


def test_inputs_that_are_none_are_refused(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "Wide.PNG", np.zeros((10, 10, 3), np.uint8))
    write_clip(tmp_path / "clip.avi", 2)
    write_clip(tmp_path / "other" / "clip.mkv", 2)
    for inputs, words in (
        (["nowhere"], "no such file or folder"),
        (["empty"], "no image or video in this folder"),
        (["photos/notes.txt"], "neither an image nor a video by its name"),
        (["photos", "other/Wide.PNG"], "would both be written as Wide.PNG"),
        (["clip.avi", "other/clip.mkv"], "would both be written as clip.mp4"),
    ):
        _assert_refused(tmp_path, words, lambda inputs=inputs: find_sources([tmp_path / name for name in inputs]))
    twice = find_sources([photos, photos / "wide.png"])
    assert [source.picture for source in twice] == ["tall.jpg", "wide.png"]


def test_one_box_for_many_inputs_is_refused(photos: Path) -> None:
    with pytest.raises(UserError, match="found together with 2 inputs"):
        asked_boxes(find_sources([photos]), None, ["1,2,3,4"])
    with pytest.raises(UserError, match="found together with --boxes"):
        asked_boxes([Source(photos / "wide.png")], photos / "b.json", ["1,2,3,4"])


def test_with_the_boxes_of_a_data_set_predictions_are_those_of_its_evaluation(
    toy: list[str], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fedgh: Callable[..., int]
) -> None:
    root, run = home / "data" / "arm", tmp_path / "run"
    write_run(run, [*toy, "evaluate.decoding=dark", "evaluate.flip_test=true"])
    inputs, boxes = str(root / "images"), str(root / "annotations.json")
    out = tmp_path / "out"
    assert fedgh("predict", str(run), inputs, "--boxes", boxes, "--out", str(out)) == 0
    assert f"80 people in 80 images in {out}" in capsys.readouterr().out
    content = json.loads((out / "predictions.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    predicted = {names[entry["image_id"]]: np.reshape(entry["keypoints"], (-1, 3)) for entry in content["annotations"]}
    opened = load_run(run)
    cache = open_cache(opened.spec, root, input_size=(32, 32), directory=tmp_path / "cache")
    batches = Batches(cache, np.arange(80), batch_size=80, seed=0, shuffle=False)
    found = evaluate(
        opened.model,
        batches,
        opened.loss,
        decode=decoder(opened.model, "dark", opened.loss),
        flip_permutation=cache.spec.flip_permutation,
    )
    # A crop of the cache has the input in its middle: (96 - 64) / 2 on a side at a margin of 1.5.
    offset = (cache.crops.shape[1] - 32) / 2
    to_crop = similarity_matrix(np.zeros(2), np.full(2, offset))
    for position, name in enumerate(cache.images):
        in_crop = apply_affine(found.coordinates[position], to_crop)
        expected = apply_affine(in_crop, cache.to_image[position])
        assert np.allclose(predicted[Path(name).name][:, :2], expected, atol=2e-3)
        back = apply_affine(expected, invert_affine(cache.to_image[position]))
        assert np.allclose(back, in_crop, atol=1e-6)


def test_what_is_asked_for_goes_before_what_the_run_says(toy: list[str], tmp_path: Path) -> None:
    write_run(tmp_path / "run", [*toy, "evaluate.decoding=dark", "evaluate.flip_test=true"])
    run = load_run(tmp_path / "run")
    assert isinstance(predictor_of(run).decode, Dark)
    asked = predictor_of(run, decoding="argmax", flip_test=False, batch_size=3)
    assert (asked.decode, asked.flip_permutation, asked.batch_size, asked.input_size) == (argmax, None, 3, (32, 32))


def test_confidence_goes_by_what_the_maps_were_trained_to(toy: list[str], tmp_path: Path) -> None:
    write_run(tmp_path / "entropy", toy)
    write_run(tmp_path / "mse", [*toy, "loss=mse"])
    assert predictor_of(load_run(tmp_path / "entropy")).confidence == MassAtPeak(sigma=2.0, beta=1.0)
    assert predictor_of(load_run(tmp_path / "mse")).confidence is peak_height


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "run", "photo.jpg", "--out", "run"], "--out run: holds files already"),
        (["predict", "run", "nowhere.jpg", "--out", "out"], "nowhere.jpg: no such file or folder"),
        (["predict", "run", "photo.jpg", "--out", "out"], "photo.jpg: image file is empty"),
        (["predict", "run", "photo.jpg", "--out", "out", "--box", "1,2"], "--box 1,2: expected four numbers"),
        (
            ["predict", "run", "photo.jpg", "--out", "out", "--box", "1,1,0,5"],
            "--box 1,1,0,5: box [1.0, 1.0, 0.0, 5.0]",
        ),
        (["predict", "run", "photo.jpg", "--out", "out", "--boxes", "photo.jpg"], "photo.jpg: not valid JSON"),
        (["predict", "run", "photo.jpg", "--out", "out", "--decoding", "best"], "best"),
        (["export", "run", "--format", "tflite"], "--format tflite: no such format; expected onnx"),
        (["export", "run", "--out", "run"], "--out run: expected a file in a folder that exists"),
        (["export", "run", "--out", "nowhere/a.onnx"], "--out nowhere/a.onnx: expected a file in a folder that exists"),
        (["export", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    toy: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fedgh: Callable[..., int],
    arguments: list[str],
    words: str,
) -> None:
    write_run(tmp_path / "run", toy)
    (tmp_path / "photo.jpg").touch()
    monkeypatch.chdir(tmp_path)
    assert fedgh(*arguments) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.jpg", "run"]
