"""A run's model on images it has never seen: the same pixels, the same reading of maps as when it was evaluated."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from fedgh_app import cli, inference, site, storage
from fedgh_app.config import compose_config
from fedgh_app.instantiation import instantiate
from fedgh_app.pose.batches import Batches
from fedgh_app.pose.confidence import MassAtPeak, peak_height
from fedgh_app.pose.crops import apply_affine, invert_affine, similarity_matrix
from fedgh_app.pose.decoding import Dark, argmax, quarter
from fedgh_app.pose.training import evaluate
from fedgh_app.runs import load_run


def write_run(directory: Path, overrides: list[str]) -> Path:
    """A run directory with a model that was not trained."""
    config = compose_config(overrides)
    directory.mkdir()
    OmegaConf.save(config, directory / "config.yaml")
    state = site.build_model(config, site.load_spec(config.dataset.spec)).state_dict()
    storage.save_model(
        directory / "model.safetensors", state, model=config.model, dataset=str(config.dataset.spec), rounds=1
    )
    return directory


def fedgh(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The command, in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["fedgh", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_with_the_boxes_of_a_data_set_predictions_are_those_of_its_evaluation(
    toy: list[str], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = home / "data" / "arm"
    run = write_run(tmp_path / "run", [*toy, "evaluate.decoding=dark", "evaluate.flip_test=true"])
    inputs, boxes = str(root / "images"), str(root / "annotations.json")
    out = tmp_path / "out"
    assert fedgh(monkeypatch, "predict", str(run), inputs, "--boxes", boxes, "--out", str(out)) == 0
    assert f"80 people in 80 images in {out}" in capsys.readouterr().out
    content = json.loads((out / "predictions.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    predicted = {names[entry["image_id"]]: np.reshape(entry["keypoints"], (-1, 3)) for entry in content["annotations"]}
    config = load_run(run).config
    cache = site.open_data(config)
    batches = Batches(cache, np.arange(80), batch_size=80, seed=0, shuffle=False)
    model = load_run(run).model
    found = evaluate(
        model,
        batches,
        instantiate(config.loss, "loss"),
        decode=site.decoder_of(config, model),
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
    run = load_run(write_run(tmp_path / "run", [*toy, "evaluate.decoding=dark", "evaluate.flip_test=true"]))
    assert isinstance(inference.predictor(run).decode, Dark)
    asked = inference.predictor(run, decoding="argmax", flip_test=False, batch_size=3)
    assert (asked.decode, asked.flip_permutation, asked.batch_size, asked.input_size) == (argmax, None, 3, (32, 32))
    del run.config.evaluate["decoding"], run.config.evaluate["flip_test"]  # a run of before they were
    old = inference.predictor(run)
    assert (old.decode, old.flip_permutation) == (quarter, None)


def test_confidence_goes_by_what_the_maps_were_trained_to(toy: list[str], tmp_path: Path) -> None:
    entropy = load_run(write_run(tmp_path / "a", toy))
    assert inference.confidence(entropy) == MassAtPeak(sigma=2.0, beta=1.0)
    assert inference.confidence(load_run(write_run(tmp_path / "b", [*toy, "loss=mse"]))) is peak_height


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["photo.jpg", "--out", "run"], "--out run: holds files already"),
        (["nowhere.jpg", "--out", "out"], "nowhere.jpg: no such file or folder"),
        (["photo.jpg", "--out", "out"], "photo.jpg: image file is empty"),
        (["photo.jpg", "--out", "out", "--box", "1,2"], "--box 1,2: expected four numbers"),
        (["photo.jpg", "--out", "out", "--boxes", "photo.jpg"], "photo.jpg: not valid JSON"),
        (["photo.jpg", "--out", "out", "--decoding", "best"], "best"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    toy: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    write_run(tmp_path / "run", toy)
    (tmp_path / "photo.jpg").touch()
    monkeypatch.chdir(tmp_path)
    assert fedgh(monkeypatch, "predict", "run", *arguments) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.jpg", "run"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--format", "tflite"], "--format tflite: no such format; expected onnx"),
        (["run", "--out", "run"], "--out run: expected a file in a folder that exists"),
        (["run", "--out", "nowhere/a.onnx"], "--out nowhere/a.onnx: expected a file in a folder that exists"),
        (["nowhere"], "nowhere"),
    ],
)
def test_an_export_that_cannot_be_is_one_line(
    toy: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    write_run(tmp_path / "run", toy)
    monkeypatch.chdir(tmp_path)
    assert fedgh(monkeypatch, "export", *arguments) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


def test_an_export_says_which_run_and_licence_it_comes_from(
    toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: dict[str, str] = {}

    def write(predictor: object, path: Path, about: dict[str, str]) -> str:
        path.write_bytes(b"x" * 2_000_000)
        said.update(about)
        return "they agree"

    monkeypatch.setattr(inference.exporting, "export", write)
    run = write_run(tmp_path / "run", toy)
    assert fedgh(monkeypatch, "export", str(run)) == 0
    assert (said["run"], said["rounds"], said["licence"]) == ("run", "1", "generated by this project, no restriction")
    assert capsys.readouterr().out.splitlines() == ["they agree", f"{run}/model.onnx, 2.0 MB"]
