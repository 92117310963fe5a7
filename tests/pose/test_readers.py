import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from folders import SHARED, arm_annotations, write_arm, write_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgh_app.pose.errors import UserError
from fedgh_app.pose.readers import read_records
from fedgh_app.pose.records import load_spec

ARM, MPII, LSPET, COCO = (load_spec(name) for name in ("arm", "mpii", "lspet", "coco"))


def shared(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"real files of {name} are not beside the project (shared/data/{name})")
    return SHARED / name


# COCO ------------------------------------------------------------------------------------------------------


def test_coco_by_hand(tmp_path: Path) -> None:
    content = arm_annotations(3)
    content["images"][1] |= {"source": "clip 7", "split": "test", "posture": 2}
    content["annotations"][1]["keypoints"][5] = 0
    content["annotations"][2]["num_keypoints"] = 0
    records, bad = read_records(ARM, write_arm(tmp_path, 3, content))
    assert [record.id for record in records] == ["100", "101"] and not bad
    first, second = records
    np.testing.assert_array_equal(first.keypoints, np.float32([[10, 8], [20, 15], [29.5, 22]]))
    assert first.visible.tolist() == [True, True, True]  # v = 1, occluded but labelled, counts
    assert second.visible.tolist() == [True, False, True]
    assert first.box.tolist() == [8, 6, 24, 18] and first.reference_length == 24
    assert (first.group, first.split) == ("000.jpg", None)
    assert (second.group, second.split) == ("clip 7", "test")
    assert first.attributes == {"viewpoint": "v0"}
    assert second.attributes == {"viewpoint": "v1", "posture": "2"}
    assert first.image == tmp_path / "images" / "000.jpg" and first.image_size == (40, 30)
    assert first.keypoints.dtype == first.box.dtype == np.float32


def test_coco_takes_keypoints_by_name(tmp_path: Path) -> None:
    content = arm_annotations(1)
    content["categories"][0]["keypoints"] = ["wrist", "hip", "shoulder", "elbow"]
    content["annotations"][0]["keypoints"] = [1, 1, 2, 0, 0, 0, 3, 3, 2, 4, 4, 2]
    records, _ = read_records(ARM, write_arm(tmp_path, 1, content))
    assert records[0].keypoints.tolist() == [[3, 3], [4, 4], [1, 1]]
    content["categories"][0]["keypoints"] = ["hand", "hip", "shoulder", "elbow"]
    with pytest.raises(UserError, match=r"annotations\.json: categories: keypoints wrist"):
        read_records(ARM, write_arm(tmp_path, 1, content), on_bad="skip")


def test_coco_real_files() -> None:
    records, bad = read_records(COCO, shared("coco"))
    annotations = json.loads((SHARED / "coco" / "annotations.json").read_text())["annotations"]
    assert len(annotations) == 14 and len(records) == 12 and not bad  # two people carry no keypoint
    counts = {str(entry["id"]): entry["num_keypoints"] for entry in annotations}
    assert all(record.visible.sum() == counts[record.id] for record in records)


def broken(change: str) -> dict[str, Any]:
    content = arm_annotations(3)
    image, person = content["images"][1], content["annotations"][1]
    joints = person["keypoints"]
    match change:
        case "missing image":
            image["file_name"] = "gone.jpg"
        case "escape" | "absolute":
            image["file_name"] = {"escape": "../annotations.json", "absolute": "/etc/hostname"}[change]
        case "no name":
            del image["file_name"]
        case "long name":
            image["file_name"] = "x" * 5000
        case "surrogate":
            image["file_name"] = "\ud800.jpg"
        case "short":
            person["keypoints"] = joints[:-1]
        case "nested":
            person["keypoints"] = [joints]
        case "words":
            joints[0] = "ten"
        case "huge":
            joints[0] = 10**400
        case "not finite":
            joints[3] = float("nan")
        case "overflows":
            joints[3] = 1e300
        case "flag":
            joints[2] = 7
        case "hidden":
            joints[2] = joints[5] = joints[8] = 0
        case "flat box":
            person["bbox"] = [8, 6, 24, 0]
        case "nan box":
            person["bbox"] = [8, float("inf"), 24, 3]
        case "no box":
            del person["bbox"]
        case "no image":
            person["image_id"] = 77
        case "odd image":
            person["image_id"] = [1]
        case "duplicate":
            person["id"] = 100
        case "no id":
            del person["id"]
        case "split":
            image["split"] = "validation"
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing image", r"images/gone\.jpg: image is missing \(annotation 101"),
        ("escape", "annotation 101: .*leads out of"),
        ("absolute", "annotation 101: .*leads out of"),
        ("no name", "annotation 101: image name None"),
        ("long name", "image is missing"),
        ("surrogate", "image is missing"),
        ("short", "annotation 101: keypoints: expected 9 numbers"),
        ("nested", "annotation 101: keypoints: expected shape"),
        ("words", "annotation 101: keypoints: expected numbers"),
        ("huge", "annotation 101: keypoints: expected numbers"),
        ("not finite", "annotation 101: a visible keypoint is not finite"),
        ("overflows", "annotation 101: a visible keypoint is not finite"),
        ("flag", "annotation 101: keypoints: visibility"),
        ("hidden", "annotation 101: no keypoint is visible"),
        ("flat box", "annotation 101: box .* has no area"),
        ("nan box", "annotation 101: box .* is not finite"),
        ("no box", "annotation 101: bbox: expected numbers"),
        ("no image", "annotation 101: image_id 77"),
        ("odd image", r"annotation 101: image_id \[1\]"),
        ("duplicate", "annotation 100: id 100 stands twice"),
        ("no id", "annotation 1: id None"),
        ("split", "annotation 101: split='validation'"),
    ],
)
def test_bad_record_is_named_or_counted(tmp_path: Path, change: str, message: str) -> None:
    root = write_arm(tmp_path, 3, broken(change))
    with pytest.raises(UserError, match=message) as caught:
        read_records(ARM, root)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    records, bad = read_records(ARM, root, on_bad="skip")
    assert [record.id for record in records] == ["100", "102"]
    assert [str(entry) for entry in bad] == [str(caught.value)]


NOT_COCO = {
    "empty": "",
    "cut": "{",
    "list": "[]",
    "null": "null",
    "no keys": "{}",
    "number for images": '{"images": 3, "annotations": []}',
    "number for an image": '{"images": [3], "annotations": []}',
    "image twice": '{"images": [{"id": 1}, {"id": 1}], "annotations": []}',
    "too deep": "[" * 100_000,
    "no text": "\xff",
    "too large": "9" * 5000,
}


@pytest.mark.parametrize("text", NOT_COCO.values(), ids=NOT_COCO)
def test_file_that_is_no_coco(tmp_path: Path, text: str) -> None:
    write_arm(tmp_path, 1)
    (tmp_path / "annotations.json").write_bytes(text.encode("latin-1"))
    for on_bad in ("raise", "skip"):
        with pytest.raises(UserError, match=r"annotations\.json"):
            read_records(ARM, tmp_path, on_bad=on_bad)  # type: ignore[arg-type]


def test_missing_folder_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.root=.*nowhere.*fedgh data arm"):
        read_records(ARM, tmp_path / "nowhere")
    for spec, name in ((ARM, "annotations.json"), (LSPET, "joints.mat"), (MPII, "annotations.json")):
        with pytest.raises(UserError, match=f"{name}: annotation file is missing"):
            read_records(spec, tmp_path)


garbage = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("000.jpg"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("spec", [ARM, MPII], ids=["coco", "mpii"])
def test_any_json_gives_records_or_a_user_error(tmp_path: Path, spec: Any, data: st.DataObject) -> None:
    """Garbage anywhere in an otherwise good file never ends in a traceback."""
    write_image(tmp_path / "images" / "000.jpg") if not (tmp_path / "images").exists() else None
    good: Any = arm_annotations(2) if spec is ARM else [mpii_person(), mpii_person()]
    content = copy.deepcopy(good)
    if data.draw(st.integers(0, 9)) == 0:
        content = data.draw(garbage)
    else:
        place = content
        while data.draw(st.booleans()) or place is content:  # walk to a random place and put garbage there
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(place[key], (dict, list)) and data.draw(st.booleans()):
                place = place[key]
                continue
            place[key] = data.draw(garbage)
            break
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    for on_bad in ("raise", "skip"):
        try:
            records, bad = read_records(spec, tmp_path, on_bad=on_bad)  # type: ignore[arg-type]
        except UserError as error:
            assert "annotations.json" in str(error) or "images" in str(error)
        else:
            assert on_bad == "skip" or not bad
            for record in records:
                assert (
                    np.isfinite(record.keypoints).all()
                    and record.visible.any()
                    and record.reference_length > 0
                )


# MPII ------------------------------------------------------------------------------------------------------


def mpii_person(**changes: Any) -> dict[str, Any]:
    joints = [[float(10 + joint), float(20 + joint)] for joint in range(16)]
    person = {
        "image": "000.jpg",
        "joints": joints,
        "joints_vis": [1] * 16,
        "center": [21.0, 31.0],
        "scale": 0.5,
    }
    return person | changes


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


def test_mpii_json_real_files() -> None:
    records, bad = read_records(MPII, shared("mpii"))
    assert len(records) == 5 and not bad
    for record in records:  # the box is meant to hold the person
        inside = record.keypoints[record.visible] - record.box[:2]
        assert ((inside > -0.2 * record.box[2:]) & (inside < 1.2 * record.box[2:])).all()


def test_mpii_head_joints_stand_for_the_head_box() -> None:
    """The claim behind HEAD_JOINTS_FACTOR, on the validation set's own numbers."""
    truth = scipy.io.loadmat(shared("mpii") / "tompson_validation.mat")
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


def test_lspet_real_files() -> None:
    records, bad = read_records(LSPET, shared("lspet"))
    joints = scipy.io.loadmat(SHARED / "lspet" / "joints.mat")["joints"]
    assert len(records) == 4000 and not bad
    np.testing.assert_array_equal(records[7].visible, joints[:, 2, 7] == 1)
    seen = records[7].visible
    np.testing.assert_allclose(records[7].keypoints[seen], joints[seen, :2, 7], rtol=1e-6)


@pytest.mark.parametrize(
    "joints", [np.zeros((14, 2, 5)), np.zeros((16, 3, 5)), np.zeros(3), np.array([["a"]]), None]
)
def test_joints_of_the_wrong_shape(tmp_path: Path, joints: Any) -> None:
    (tmp_path / "images").mkdir()
    scipy.io.savemat(tmp_path / "joints.mat", {"other": 1} if joints is None else {"joints": joints})
    with pytest.raises(UserError, match=r"joints\.mat: joints: expected .*\(14, 3, N\)"):
        read_records(LSPET, tmp_path, on_bad="skip")


def test_lsp_bad_people(tmp_path: Path) -> None:
    joints = np.concatenate([np.repeat(lsp_points()[:1], 5, axis=0), np.ones((5, 14, 1))], axis=-1).transpose(
        1, 2, 0
    )
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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), max_size=4))
@pytest.mark.parametrize("kind", ["official", "lsp"])
def test_damaged_mat_files(tmp_path: Path, kind: str, cut: float, flips: list[tuple[float, int]]) -> None:
    """A truncated or corrupted MATLAB file gives records or a `UserError`."""
    spec, name = (MPII, "mpii_human_pose_v1_u12_1.mat") if kind == "official" else (LSPET, "joints.mat")
    whole = tmp_path / "whole.bin"
    if not whole.exists():
        if kind == "official":
            official(tmp_path)
        else:
            joints = np.concatenate([lsp_points(), np.ones((2, 14, 1))], axis=-1).transpose(1, 2, 0)
            scipy.io.savemat(tmp_path / name, {"joints": joints})
        whole.write_bytes((tmp_path / name).read_bytes())
    data = bytearray(whole.read_bytes())
    for place, mask in flips:
        data[int(place * len(data))] ^= mask
    (tmp_path / name).write_bytes(data[: int(cut * len(data))] if cut < 0.8 else data)
    try:
        read_records(spec, tmp_path, on_bad="skip")
    except UserError as error:
        assert name in str(error)
