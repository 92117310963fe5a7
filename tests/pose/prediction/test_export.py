"""ONNX files say what PyTorch says, and the page that describes them tells the truth."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from dots import Dots, dotted, write
from torch import Tensor, nn
from written_run import write_run

from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import load_spec
from fedgh_app.pose.models.decoding import Integral, MassAtPeak, quarter
from fedgh_app.pose.prediction import export
from fedgh_app.pose.prediction.prediction import Predictor, Source, predict_all

PAGE = Path(__file__).resolve().parents[3] / "docs/prediction.md"
ARM = load_spec("arm")
SIZE = (48, 32)


class Net(nn.Module):
    """Dots with logits, and weights as any network has them."""

    def __init__(self) -> None:
        super().__init__()
        self.dots = Dots(blur=5)
        self.scale = nn.Parameter(torch.tensor(60.0))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * self.dots(images)


def predictor(decode=quarter) -> Predictor:
    return Predictor(Net().eval(), ARM, SIZE, decode, MassAtPeak(), torch.device("cpu"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, export.Agreement]:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return path, export.write(predictor(), path, {"licence": "none", "rounds": "3"})


def test_the_file_takes_any_number_of_images_and_says_what_it_is(exported: tuple[Path, export.Agreement]) -> None:
    path, agreement = exported
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]
    assert agreement.maps < 1e-5 and agreement.keypoints < 1e-3 and "agree" in str(agreement)
    session = onnxruntime.InferenceSession(str(path))
    (given,), found = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(float)", [3, *SIZE])
    assert [(entry.name, entry.shape[1:]) for entry in found] == [("keypoints", [3, 3]), ("maps", [3, *SIZE])]
    model = predictor()
    for count in (1, 5):
        images = torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(count))
        keypoints, maps = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            own = model.model(images)
            points, _ = quarter(own, SIZE)
            sure = model.confidence(own)
        assert np.allclose(maps, own, atol=1e-4) and maps.shape == (count, 3, *SIZE)
        assert np.allclose(keypoints[..., :2], points, atol=1e-3) and np.allclose(keypoints[..., 2], sure, atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["keypoints"]) == list(ARM.keypoints) and json.loads(about["skeleton"]) == [[0, 1], [1, 2]]
    assert (json.loads(about["input_size"]), json.loads(about["padding"])) == (list(SIZE), 1.25)
    assert json.loads(about["mean"]) == [0.485, 0.456, 0.406] and json.loads(about["std"]) == [0.229, 0.224, 0.225]
    assert (about["licence"], about["rounds"]) == ("none", "3")


def test_the_example_of_the_page_finds_what_the_prediction_finds(
    exported: tuple[Path, export.Agreement],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    # Larger than the input, which averages, and smaller, which does not.
    for number, (width, height, points) in enumerate(
        [(410, 300, [[90, 60], [200, 130], [300, 240]]), (30, 25, [[5, 5], [14, 18], [25, 8]])]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder / "photo.jpg", dotted(np.array(points), width, height, radius=max(3, width // 14)))
        (folder / "model.onnx").symlink_to(exported[0])
        monkeypatch.chdir(folder)
        exec(compile(code, str(PAGE), "exec"), {})
        said = {line.split()[0]: list(map(float, line.split()[1:])) for line in capsys.readouterr().out.splitlines()}
        predict_all(predictor(), [Source(Path("photo.jpg"))], Path("out"))
        entry = json.loads(Path("out/predictions.json").read_text())["annotations"][0]
        assert list(said) == list(ARM.keypoints)
        pixel = max(1.25 * width / SIZE[1], 1.25 * height / SIZE[0])  # of the input, in the photograph's
        apart = np.abs(np.array(list(said.values())) - np.reshape(entry["keypoints"], (3, 3)))
        # The crops differ in their last bits, and the quarter shift goes one way or the other.
        assert apart[:, :2].max() < 0.6 * pixel and apart[:, 2].max() < 0.03
        assert np.abs(np.array(list(said.values()))[:, :2] - points).max() < 1.5 * pixel


@pytest.mark.slow
def test_an_integral_head_is_exported_with_its_own_reading(tmp_path: Path) -> None:
    integral = Integral(debiased=True, beta=2.0)
    assert export.write(predictor(integral), tmp_path / "a.onnx", {}).keypoints < 1e-3


def test_a_file_that_disagrees_is_not_left(
    exported: tuple[Path, export.Agreement], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "to_onnx", lambda net, size, path, **_: shutil.copy(exported[0], path))
    other = predictor()
    other.model.scale.data *= 1.01
    with pytest.raises(UserError, match=r"a\.onnx: ONNX Runtime and PyTorch disagree: maps by 9\.9e-03"):
        export.write(other, tmp_path / "a.onnx", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package} is not installed; expected: pip install 'fedgh\[export\]'"):
        export.write(predictor(), tmp_path / "a.onnx", {})
    assert list(tmp_path.iterdir()) == []


def test_an_export_says_which_run_and_licence_it_comes_from(
    toy: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fedgh: Callable[..., int],
) -> None:
    said: dict[str, str] = {}

    def note(predictor: object, path: Path, about: dict[str, str]) -> str:
        path.write_bytes(b"x" * 2_000_000)
        said.update(about)
        return "they agree"

    monkeypatch.setattr(export, "write", note)
    run = tmp_path / "run"
    write_run(run, toy)
    assert fedgh("export", str(run)) == 0
    assert (said["run"], said["rounds"], said["licence"]) == ("run", "3", "generated by this project, no restriction")
    assert capsys.readouterr().out.splitlines() == ["they agree", f"{run}/model.onnx, 2.0 MB"]
