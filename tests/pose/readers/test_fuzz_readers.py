"""Files of any content, to every reader of images, annotations and predictions: a `UserError` or a good answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import scipy.io
import yaml
from folders import arm_annotations, mpii_person, write_arm, write_image
from hypothesis import strategies as st
from mutation import altered, counted, damaged, fuzz, one_line

from fedgh_app.errors import UserError
from fedgh_app.pose.arms import coco_folder
from fedgh_app.pose.data.cache import open_cache
from fedgh_app.pose.data.records import load_spec
from fedgh_app.pose.official import coco as official_coco
from fedgh_app.pose.official import mpii as official_mpii
from fedgh_app.pose.official.results import read_results
from fedgh_app.pose.prediction import videos
from fedgh_app.pose.prediction.boxes import read_boxes
from fedgh_app.pose.readers import mpii, read_records
from fedgh_app.resources import DATASETS
from fedgh_app.tasks import spec_names
from fedgh_app.vision.images import read_image

ARM, MPII, LSPET, COCO = (load_spec(name) for name in ("arm", "mpii", "lspet", "coco"))


def told(read: Callable[[], Any], *names: str) -> None:
    """Read; a `UserError` is an answer like another, if it is one line that names one of ``names``."""
    try:
        read()
    except UserError as error:
        one_line(error, *names)


def dumped(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def jsons(valid: Any) -> st.SearchStrategy[bytes]:
    """JSON files with a wrong structure, and files that are none any more."""
    return st.one_of(altered(valid).map(dumped), altered(valid).map(dumped), damaged(dumped(valid)))


def both_ways(spec: Any, root: Path) -> None:
    for on_bad in ("raise", "skip"):
        told(lambda on_bad=on_bad: read_records(spec, root, on_bad=on_bad), str(root))


# Annotations -----------------------------------------------------------------------------------------------


@counted
def test_coco(tmp_path: Path, count: int) -> None:
    root = write_arm(tmp_path, 2)

    def check(content: bytes) -> None:
        (root / "annotations.json").write_bytes(content)
        both_ways(ARM, root)

    valid = arm_annotations(2)
    valid["images"][0] |= {"split": "train", "source": "a"}
    valid["images"][1] |= {"split": "test", "source": "b"}
    fuzz(check, jsons(valid), count)


@counted
def test_crops_of_what_was_read(tmp_path: Path, count: int) -> None:
    root = write_arm(tmp_path / "data", 3)

    def check(content: bytes) -> None:
        (root / "annotations.json").write_bytes(content)
        told(
            lambda: open_cache(ARM, root, input_size=(32, 32), on_bad="skip", directory=tmp_path / "cache"),
            str(root),
        )

    fuzz(check, jsons(arm_annotations(3)), count // 4)


@counted
def test_mpii_json(tmp_path: Path, count: int) -> None:
    write_image(tmp_path / "images" / "000.jpg")

    def check(content: bytes) -> None:
        (tmp_path / "annotations.json").write_bytes(content)
        both_ways(MPII, tmp_path)

    fuzz(check, jsons([mpii_person(), mpii_person(scale=1.5)]), count)


class Struct:
    """As SciPy makes them of MATLAB's structures."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fieldnames = list(fields)
        vars(self).update({key: as_matlab(value) for key, value in fields.items()})


def as_matlab(value: Any) -> Any:
    """A tree as `scipy.io.loadmat` gives it with squeezed axes."""
    if isinstance(value, dict):
        return Struct(value)
    if isinstance(value, list):
        made = np.empty(len(value), dtype=object)
        made[:] = [as_matlab(item) for item in value]
        return made if len(made) != 1 else made[0]
    return value


def mpii_release() -> dict[str, Any]:
    points = [{"x": 10.0 + j, "y": 20.0 + j, "id": j, "is_visible": 1} for j in range(16)]
    person = {"annopoints": {"point": points}, "objpos": {"x": 20.0, "y": 30.0}, "scale": 0.5}
    person |= {"x1": 5.0, "y1": 6.0, "x2": 15.0, "y2": 16.0}
    image = {"image": {"name": "000.jpg"}, "vididx": 1, "annorect": [person, dict(person)]}
    act = {"cat_name": "running", "act_name": "jogging", "act_id": 1}
    return {"annolist": [image, dict(image)], "img_train": [1, 0], "act": [act, act], "single_person": [[1], [2, 1]]}


@counted
def test_mpii_structures(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "images" / "000.jpg")
    (tmp_path / mpii.OFFICIAL_FILE).touch()

    def check(tree: Any) -> None:
        monkeypatch.setattr(mpii, "read_mat", lambda *_, **__: {"RELEASE": as_matlab(tree)})
        both_ways(MPII, tmp_path)

    fuzz(check, altered(mpii_release()), count)


@counted
def test_mpii_matlab_files(tmp_path: Path, count: int) -> None:
    """Few, since each is parsed in a process of its own."""
    file = tmp_path / mpii.OFFICIAL_FILE
    scipy.io.savemat(file, {"RELEASE": {"annolist": {"image": {"name": "000.jpg"}}, "img_train": 1}})

    def check(content: bytes) -> None:
        file.write_bytes(content)
        told(lambda: read_records(MPII, tmp_path, on_bad="skip"), str(file))

    fuzz(check, damaged(file.read_bytes()), count // 20)


@counted
@pytest.mark.parametrize("compressed", [False, True])
def test_lsp(tmp_path: Path, count: int, compressed: bool) -> None:
    for i in range(2):
        write_image(tmp_path / "images" / f"im{i + 1:05d}.jpg")
    joints = np.random.default_rng(0).uniform(0, 30, (14, 3, 2))
    joints[:, 2] = 1
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": joints}, do_compression=compressed)

    def check(content: bytes) -> None:
        (tmp_path / "joints.mat").write_bytes(content)
        both_ways(LSPET, tmp_path)

    fuzz(check, damaged((tmp_path / "joints.mat").read_bytes()), count)


@counted
def test_our_own_folders(tmp_path: Path, count: int) -> None:
    root = write_arm(tmp_path, 1)
    valid = arm_annotations(1) | {"info": {"made_by": {"program": "x", "count": 1}}}

    def check(content: bytes) -> None:
        (root / "annotations.json").write_bytes(content)
        told(lambda: coco_folder.is_written(root, {"program": "x", "count": 1}), str(root))

    fuzz(check, jsons(valid), count)


# Predictions -----------------------------------------------------------------------------------------------


@counted
def test_boxes(tmp_path: Path, count: int) -> None:
    file = tmp_path / "boxes.json"
    detections = [
        {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5},
        {"file_name": "2.jpg", "category_id": 2, "bbox": [1, 2, 3, 4]},
    ]
    annotations = {
        "images": [{"id": 7, "file_name": "1.jpg"}, {"id": 8, "file_name": "a/2.jpg", "frame": 3}],
        "annotations": [{"image_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": 0}, {"image_id": 8, "bbox": [1, 2, 3, 4]}],
    }

    def check(content: bytes) -> None:
        file.write_bytes(content)
        told(lambda: read_boxes(file, ["1.jpg", "2.jpg"]), str(file))

    fuzz(check, st.one_of(jsons(detections), jsons(annotations)), count)


@counted
def test_results(tmp_path: Path, count: int) -> None:
    file = tmp_path / "results.json"
    valid = [{"image_id": i, "category_id": 1, "keypoints": [1.0, 2.0, 0.5] * 3, "score": 0.5} for i in range(2)]

    def check(content: bytes) -> None:
        file.write_bytes(content)
        told(lambda: read_results(file, ARM), str(file))

    fuzz(check, jsons(valid), count)


@counted
def test_coco_truth_and_results(tmp_path: Path, count: int) -> None:
    truth, found = tmp_path / "truth.json", tmp_path / "found.json"
    triples = [value for j in range(17) for value in (10 + j, 20 + j, 2)]
    person = {"category_id": 1, "keypoints": triples, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 0}
    valid_truth = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "annotations": [{**person, "id": i, "image_id": i, "num_keypoints": 17} for i in (1, 2)],
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO.keypoints)}],
    }
    valid_found = [{"image_id": i, "category_id": 1, "keypoints": triples, "score": 0.5} for i in (1, 2)]

    def check(contents: tuple[bytes, bytes]) -> None:
        truth.write_bytes(contents[0])
        found.write_bytes(contents[1])
        for on_bad in ("raise", "skip"):
            told(
                lambda on_bad=on_bad: official_coco.score(COCO, truth, found, side="test", on_bad=on_bad),
                str(tmp_path),
            )

    whole = st.tuples(jsons(valid_truth), st.just(dumped(valid_found)))
    fuzz(check, st.one_of(whole, st.tuples(st.just(dumped(valid_truth)), jsons(valid_found))), count)


def arrays_as(suffix: str, folder: Path, **arrays: np.ndarray) -> bytes:
    """A file of arrays in one of the forms in which pose codes write predictions."""
    file = folder / f"valid{suffix}"
    if suffix == ".mat":
        scipy.io.savemat(file, arrays)
    elif suffix == ".npz":
        np.savez(file, **arrays)
    else:
        with h5py.File(file, "w", userblock_size=512 if suffix == ".v73.mat" else 0) as stored:
            for key, value in arrays.items():
                stored[key] = value.T if suffix == ".v73.mat" else value
        if suffix == ".v73.mat":
            with file.open("r+b") as raw:
                raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    return file.read_bytes()


@counted
@pytest.mark.parametrize("suffix", [".mat", ".v73.mat", ".h5", ".npz"])
def test_mpii_predictions(tmp_path: Path, suffix: str, count: int) -> None:
    points = np.arange(3 * 32, dtype=np.float64).reshape(3, 16, 2)
    file = tmp_path / f"found{suffix}"

    def check(content: bytes) -> None:
        file.write_bytes(content)
        told(lambda: official_mpii.read_mpii_predictions(file), str(file))

    fuzz(check, damaged(arrays_as(suffix, tmp_path, preds=points)), count)


@counted
def test_mpii_truth(tmp_path: Path, count: int) -> None:
    file = tmp_path / "truth.mat"
    arrays = {
        "pos_gt_src": np.ones((16, 2, 3)),
        "jnt_missing": np.zeros((16, 3)),
        "headboxes_src": np.arange(12.0).reshape(2, 2, 3),
    }

    def check(content: bytes) -> None:
        file.write_bytes(content)
        told(lambda: official_mpii.read_mpii_truth(file), str(file))

    fuzz(check, damaged(arrays_as(".mat", tmp_path, **arrays)), count)


# Pictures --------------------------------------------------------------------------------------------------


@counted
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff", ".gif", ".ppm", ".hdr"])
def test_images(tmp_path: Path, suffix: str, count: int) -> None:
    write_image(tmp_path / f"valid{suffix}", 24, 16)
    file = tmp_path / f"image{suffix}"

    def check(content: bytes) -> None:
        file.write_bytes(content)
        told(lambda: read_image(file), str(file))

    fuzz(check, damaged((tmp_path / f"valid{suffix}").read_bytes()), count)


@counted
@pytest.mark.parametrize(("suffix", "codec"), [(".avi", "MJPG"), (".mp4", "mp4v")])
def test_videos(tmp_path: Path, suffix: str, codec: str, count: int) -> None:
    valid = tmp_path / f"valid{suffix}"
    writer = cv2.VideoWriter(str(valid), cv2.VideoWriter.fourcc(*codec), 10, (32, 32))
    for number in range(4):
        writer.write(np.full((32, 32, 3), 50 * number, np.uint8))
    writer.release()
    file = tmp_path / f"video{suffix}"

    def check(content: bytes) -> None:
        file.write_bytes(content)
        told(lambda: [None for _ in zip(range(50), videos.frames_of(videos.open_video(file)), strict=False)], str(file))

    fuzz(check, damaged(valid.read_bytes()), count)


# Descriptions of data sets ---------------------------------------------------------------------------------


@counted
def test_specs(tmp_path: Path, count: int) -> None:
    file = tmp_path / "mine.yaml"
    known = [(DATASETS / f"{name}.yaml").read_text() for name in spec_names()]

    def check(content: bytes) -> None:
        file.write_bytes(content)
        told(lambda: load_spec("mine", tmp_path), str(file))

    trees = [altered(yaml.safe_load(text)).map(lambda tree: yaml.safe_dump(tree).encode()) for text in known]
    fuzz(check, st.one_of(*trees, damaged(*(text.encode() for text in known))), count)
