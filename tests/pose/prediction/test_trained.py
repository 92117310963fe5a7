"""A run's model on images it has never seen: the same pixels, the same reading of maps as when it was evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from written_run import write_run

from fedgh_app.pose.data.batches import Batches
from fedgh_app.pose.data.cache import open_cache
from fedgh_app.pose.data.crops import apply_affine, invert_affine, similarity_matrix
from fedgh_app.pose.models.decoding import Dark, MassAtPeak, argmax, decoder, peak_height
from fedgh_app.pose.prediction import trained as inference
from fedgh_app.pose.training import evaluate
from fedgh_app.runs.opening import load_run


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
    assert isinstance(inference.predictor(run).decode, Dark)
    asked = inference.predictor(run, decoding="argmax", flip_test=False, batch_size=3)
    assert (asked.decode, asked.flip_permutation, asked.batch_size, asked.input_size) == (argmax, None, 3, (32, 32))


def test_confidence_goes_by_what_the_maps_were_trained_to(toy: list[str], tmp_path: Path) -> None:
    write_run(tmp_path / "entropy", toy)
    write_run(tmp_path / "mse", [*toy, "loss=mse"])
    assert inference.confidence(load_run(tmp_path / "entropy")) == MassAtPeak(sigma=2.0, beta=1.0)
    assert inference.confidence(load_run(tmp_path / "mse")) is peak_height


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "run", "photo.jpg", "--out", "run"], "--out run: holds files already"),
        (["predict", "run", "nowhere.jpg", "--out", "out"], "nowhere.jpg: no such file or folder"),
        (["predict", "run", "photo.jpg", "--out", "out"], "photo.jpg: image file is empty"),
        (["predict", "run", "photo.jpg", "--out", "out", "--box", "1,2"], "--box 1,2: expected four numbers"),
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


def test_an_export_says_which_run_and_licence_it_comes_from(
    toy: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fedgh: Callable[..., int],
) -> None:
    said: dict[str, str] = {}

    def write(predictor: object, path: Path, about: dict[str, str]) -> str:
        path.write_bytes(b"x" * 2_000_000)
        said.update(about)
        return "they agree"

    monkeypatch.setattr(inference.exporting, "export", write)
    run = tmp_path / "run"
    write_run(run, toy)
    assert fedgh("export", str(run)) == 0
    assert (said["run"], said["rounds"], said["licence"]) == ("run", "3", "generated by this project, no restriction")
    assert capsys.readouterr().out.splitlines() == ["they agree", f"{run}/model.onnx, 2.0 MB"]
