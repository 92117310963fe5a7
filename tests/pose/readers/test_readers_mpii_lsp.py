import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from folders import mpii_person, write_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import DatasetSpec, load_spec
from fedgh_app.pose.readers import read_records

OFFICIAL = "mpii_human_pose_v1_u12_1.mat"
MPII, LSPET = load_spec("mpii"), load_spec("lspet")


# MPII ------------------------------------------------------------------------------------------------------


def test_mpii_json_by_hand(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "000.jpg")
    people = [mpii_person(), mpii_person(joints_vis=[1] * 9 + [0] + [1] * 6)]
    (tmp_path / "annotations.json").write_text(json.dumps(people))
    (first, second), _ = read_records(MPII, tmp_path)
    assert first.keypoints[0].tolist() == [9, 19]  # 1-based in the file
    # 100 px high, around (21, 31 + 15 * 0.5) - 1.
    np.testing.assert_allclose(first.box, [20 - 50, 37.5 - 50, 100, 100])
    np.testing.assert_allclose(first.reference_length, 0.75 * np.sqrt(2), rtol=1e-6)
    assert second.reference_length == 12.5  # no head joint: an eighth of the height
    assert [first.id, second.id] == ["000.jpg#0", "000.jpg#1"] and first.group == second.group


def test_mpii_json_real_files(shared_data: Path) -> None:
    records, bad = read_records(MPII, shared_data / "mpii")
    assert len(records) == 5 and not bad
    for record in records:  # the box is meant to hold the person
        inside = record.keypoints[record.visible] - record.box[:2]
        assert ((inside > -0.2 * record.box[2:]) & (inside < 1.2 * record.box[2:])).all()


def test_mpii_head_joints_stand_for_the_head_box(shared_data: Path) -> None:
    """The claim behind HEAD_JOINTS_FACTOR, on the validation set's own numbers."""
    truth = scipy.io.loadmat(shared_data / "mpii" / "tompson_validation.mat")
    joints, boxes, missing = truth["pos_gt_src"], truth["headboxes_src"], truth["jnt_missing"]
    there = (missing[8] == 0) & (missing[9] == 0)
    head = 0.6 * np.linalg.norm(boxes[1] - boxes[0], axis=0)[there]
    neck = 0.75 * np.linalg.norm(joints[9] - joints[8], axis=0)[there]
    assert np.mean(np.abs(head / neck - 1) < 1e-3) > 0.93
    assert np.mean(np.abs(head / neck - 1) < 0.02) > 0.97


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joints": [[1, 2]] * 15}, r"person 0: joints: expected shape \(16, 2\), found \(15, 2\)"),
        ({"joints_vis": [1] * 15}, "joints_vis"),
        ({"joints_vis": [0] * 16}, "no keypoint is visible"),
        ({"scale": 0}, "scale 0"),
        ({"scale": -1.0}, "scale -1"),
        ({"scale": [1]}, "scale"),
        ({"center": [1]}, "center"),
        ({"image": None}, "image name None"),
    ],
)
def test_bad_mpii_json(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_image(tmp_path / "images" / "000.jpg")
    (tmp_path / "annotations.json").write_text(json.dumps([mpii_person(**changes)]))
    with pytest.raises(UserError, match=message):
        read_records(MPII, tmp_path)


def struct_array(entries: list[dict[str, Any]]) -> np.ndarray:
    """A 1 x n MATLAB struct array; like MATLAB's, all elements have all fields, empty where not given."""
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    array = np.empty((1, len(entries)), dtype=[(name, object) for name in names])
    for i, entry in enumerate(entries):
        for name in names:
            array[0, i][name] = entry.get(name, np.zeros((0, 0)))
    return array


def official(tmp_path: Path, x: float = 10.0) -> Path:
    """The official structure in miniature: what each image and person may lack is lacking somewhere."""

    def point(joint: int, visible: Any) -> dict[str, Any]:
        return {"x": x + joint, "y": 20.5 + joint, "id": np.uint8(joint), "is_visible": visible}

    whole = {
        "x1": 12, "y1": 5, "x2": 15, "y2": 9, "scale": 0.5, "objpos": struct_array([{"x": 21, "y": 31}]),
        "annopoints": struct_array([{"point": struct_array([point(j, np.uint8(j % 2)) for j in range(16)])}]),
    }  # fmt: skip
    part = {
        "scale": 0.5, "objpos": struct_array([{"x": 21, "y": 31}]),
        "annopoints": struct_array([{"point": struct_array([point(6, "1"), point(7, np.zeros((0, 0)))])}]),
    }  # fmt: skip
    lone = part | {"annopoints": struct_array([{"point": struct_array([point(9, "0")])}])}
    unlabelled = {"scale": 0.4, "objpos": struct_array([{"x": 5, "y": 6}])}
    empty = part | {"annopoints": np.zeros((0, 0))}
    images = [
        [whole],  # a single person
        [part, empty, unlabelled, lone],  # several, two of them not labelled
        [unlabelled],  # the test set: no annopoints field at all
        [],  # nobody
    ]
    annolist = struct_array(
        [
            {
                "image": struct_array([{"name": f"{i:03d}.jpg"}]),
                "annorect": struct_array(people) if people else np.zeros((0, 0)),
                "frame_sec": np.zeros((0, 0)),
                "vididx": np.zeros((0, 0)) if i == 0 else 5,
            }
            for i, people in enumerate(images)
        ]
    )
    single = np.empty((4, 1), dtype=object)
    single[:, 0] = [np.array([[1]]), np.array([[1], [4]]), np.zeros((0, 0)), np.zeros((0, 0))]
    release = struct_array(
        [
            {
                "annolist": annolist,
                "img_train": np.array([[1, 1, 0, 1]]),
                "version": "12",
                "single_person": single,
                "act": struct_array([{"cat_name": "sports", "act_name": "run", "act_id": 1}] * 4).T,
            }
        ]
    )
    for i in range(4):
        write_image(tmp_path / "images" / f"{i:03d}.jpg")
    scipy.io.savemat(tmp_path / "mpii_human_pose_v1_u12_1.mat", {"RELEASE": release})
    return tmp_path


def test_official_mpii_structure(tmp_path: Path) -> None:
    records, bad = read_records(MPII, official(tmp_path))
    assert not bad
    assert [record.id for record in records] == ["000.jpg#0", "001.jpg#0", "001.jpg#3"]
    whole, part, lone = records
    np.testing.assert_allclose(whole.keypoints, [[9 + j, 19.5 + j] for j in range(16)])
    assert whole.visible.all()  # hidden joints have a place too
    assert whole.reference_length == 0.6 * 5  # a head box of 3 x 4
    np.testing.assert_allclose(whole.box, [20 - 50, 37.5 - 50, 100, 100])
    assert np.flatnonzero(part.visible).tolist() == [6, 7] and np.flatnonzero(lone.visible).tolist() == [9]
    assert part.reference_length == 12.5  # neither head box nor head joints
    assert (whole.group, part.group, lone.group) == ("000.jpg", "video 5", "video 5")
    assert dict(lone.attributes) == {"category": "sports", "single_person": "yes"}
    assert all(record.split is None for record in records)


def test_official_mpii_single_image(tmp_path: Path) -> None:
    """With one image `squeeze_me` leaves bare values instead of arrays at every level."""
    write_image(tmp_path / "images" / "a.jpg")
    point = struct_array([{"x": 3.0, "y": 4.0, "id": 0, "is_visible": 1}])
    person = struct_array(
        [
            {
                "scale": 1.0,
                "objpos": struct_array([{"x": 5.0, "y": 6.0}]),
                "annopoints": struct_array([{"point": point}]),
            }
        ]
    )
    image = struct_array([{"image": struct_array([{"name": "a.jpg"}]), "annorect": person}])
    release = struct_array([{"annolist": image, "img_train": np.array([[0]])}])
    scipy.io.savemat(tmp_path / "mpii_human_pose_v1_u12_1.mat", {"RELEASE": release})
    (record,), _ = read_records(MPII, tmp_path)
    assert record.keypoints[0].tolist() == [2, 3] and record.split == "test"


def test_official_mpii_bad_person(tmp_path: Path) -> None:
    root = official(tmp_path, x=np.nan)
    with pytest.raises(UserError, match=r"annolist\(1\)\.annorect\(1\): a visible keypoint is not finite"):
        read_records(MPII, root)
    assert len(read_records(MPII, root, on_bad="skip")[1]) == 3
    (root / "images" / "001.jpg").unlink()
    with pytest.raises(UserError, match=r"001\.jpg: image is missing"):
        read_records(MPII, official_without(root, "001.jpg"))


def official_without(root: Path, name: str) -> Path:
    official(root)
    (root / "images" / name).unlink()
    return root


# LSP -------------------------------------------------------------------------------------------------------


def lsp_points() -> np.ndarray:
    """(2 people, 14 joints, x y): a skeleton on a diagonal, the second twice as large."""
    first = np.stack([np.arange(14.0) + 3, 2 * np.arange(14.0) + 1], axis=-1)
    return np.stack([first, 2 * first])


def test_lsp_layouts_say_the_same_with_opposite_flags(tmp_path: Path) -> None:
    points = lsp_points()
    flags = np.ones((2, 14))
    flags[1, 4] = 0
    extended = np.concatenate([points, flags[..., None]], axis=-1).transpose(1, 2, 0)
    original = np.concatenate([points, 1 - flags[..., None]], axis=-1).transpose(2, 1, 0)
    assert extended.shape == (14, 3, 2) and original.shape == (3, 14, 2)
    results = []
    for name, joints, digits in (("lspet", extended, 5), ("lsp", original, 4)):
        root = tmp_path / name
        for i in (1, 2):
            write_image(root / "images" / f"im{i:0{digits}d}.jpg")
        scipy.io.savemat(root / "joints.mat", {"joints": joints})
        results.append(read_records(LSPET, root)[0])
    for records in results:
        np.testing.assert_array_equal(records[0].keypoints, points[0].astype(np.float32))
        assert records[0].visible.all()
        assert np.flatnonzero(~records[1].visible).tolist() == [4]
        # Left shoulder (9) to right hip (2): 7 across, 14 down.
        np.testing.assert_allclose(records[0].reference_length, 7 * np.sqrt(5), rtol=1e-6)
        np.testing.assert_allclose(records[0].box, [3 - 2.6, 1 - 2.6, 13 + 5.2, 26 + 5.2], rtol=1e-6)
    assert results[0][0].id == "im00001" and results[1][0].id == "im0001"


def test_torso_falls_back(tmp_path: Path) -> None:
    joints = np.concatenate([lsp_points(), np.ones((2, 14, 1))], axis=-1).transpose(1, 2, 0)
    joints[9, 2, :] = 0  # no left shoulder: the other diagonal, right shoulder (8) to left hip (3)
    joints[3, 2, 1] = 0  # nor that one: a share of the box's longest side
    for i in (1, 2):
        write_image(tmp_path / "images" / f"im{i:05d}.jpg")
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": joints})
    first, second = read_records(LSPET, tmp_path)[0]
    np.testing.assert_allclose(first.reference_length, 5 * np.sqrt(5), rtol=1e-6)
    np.testing.assert_allclose(second.reference_length, 0.41 * second.box[3], rtol=1e-6)


def test_lspet_real_files(shared_data: Path) -> None:
    records, bad = read_records(LSPET, shared_data / "lspet")
    joints = scipy.io.loadmat(shared_data / "lspet" / "joints.mat")["joints"]
    assert len(records) == 4000 and not bad
    np.testing.assert_array_equal(records[7].visible, joints[:, 2, 7] == 1)
    seen = records[7].visible
    np.testing.assert_allclose(records[7].keypoints[seen], joints[seen, :2, 7], rtol=1e-6)


@pytest.mark.parametrize("joints", [np.zeros((14, 2, 5)), np.zeros((16, 3, 5)), np.zeros(3), np.array([["a"]]), None])
def test_joints_of_the_wrong_shape(tmp_path: Path, joints: Any) -> None:
    (tmp_path / "images").mkdir()
    scipy.io.savemat(tmp_path / "joints.mat", {"other": 1} if joints is None else {"joints": joints})
    with pytest.raises(
        UserError,
        match=r"joints\.mat: (joints: expected .*\(14, 3, N\)|not a readable MATLAB file: .joints. is no array)",
    ):
        read_records(LSPET, tmp_path, on_bad="skip")


def test_lsp_bad_people(tmp_path: Path) -> None:
    joints = np.concatenate([np.repeat(lsp_points()[:1], 5, axis=0), np.ones((5, 14, 1))], axis=-1).transpose(1, 2, 0)
    joints[:, 2, 0] = 0  # nothing labelled
    joints[1:, 2, 1] = 0  # one joint: no extent
    joints[0, 2, 2] = 5  # no flag
    joints[0, 0, 3] = np.inf
    for i in range(1, 5):
        write_image(tmp_path / "images" / f"im{i:05d}.jpg")
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": joints})
    records, bad = read_records(LSPET, tmp_path, on_bad="skip")
    assert not records
    reasons = ["no keypoint", "has no area", "third number", "not finite", "image is missing"]
    assert all(reason in entry.reason for reason, entry in zip(reasons, bad, strict=True))


DAMAGE = {
    "cut": st.floats(0, 1),
    "flips": st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), max_size=4),
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**DAMAGE)
def test_a_damaged_lsp_file(tmp_path: Path, cut: float, flips: list[tuple[float, int]]) -> None:
    if not (tmp_path / "joints.mat").exists():
        joints = np.concatenate([lsp_points(), np.ones((2, 14, 1))], axis=-1).transpose(1, 2, 0)
        scipy.io.savemat(tmp_path / "joints.mat", {"joints": joints})
    read_damaged(LSPET, tmp_path / "joints.mat", cut, flips)


# Each reading starts a process, which takes a second.
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**DAMAGE)
def test_a_damaged_official_file(tmp_path: Path, cut: float, flips: list[tuple[float, int]]) -> None:
    if not (tmp_path / OFFICIAL).exists():
        official(tmp_path)
    read_damaged(MPII, tmp_path / OFFICIAL, cut, flips)


def test_a_file_that_crashes_the_parser_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official(tmp_path)
    # What some damaged files do to SciPy, on every platform and version: the parsing process dies.
    monkeypatch.setattr("scipy.io.loadmat", die)
    monkeypatch.setattr("fedgh_app.pose.readers.intake.get_context", lambda _: multiprocessing.get_context("fork"))
    with pytest.raises(UserError, match=rf"{OFFICIAL}: damaged"):
        read_records(MPII, tmp_path, on_bad="skip")


def die(*_: Any, **__: Any) -> None:
    os._exit(1)


def read_damaged(spec: DatasetSpec, file: Path, cut: float, flips: list[tuple[float, int]]) -> None:
    """A truncated or corrupted MATLAB file gives records or a `UserError`, and the process lives on."""
    whole = file.with_suffix(".whole")
    if not whole.exists():
        whole.write_bytes(file.read_bytes())
    data = bytearray(whole.read_bytes())
    for place, mask in flips:
        data[int(place * len(data))] ^= mask
    file.write_bytes(data[: int(cut * len(data))] if cut < 0.8 else data)
    try:
        read_records(spec, file.parent, on_bad="skip")
    except UserError as error:
        assert file.name in str(error)
