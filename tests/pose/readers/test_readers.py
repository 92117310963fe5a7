import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import arm_annotations, mpii_person, write_arm, write_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgh_app.errors import UserError
from fedgh_app.pose.data.cache import fingerprint
from fedgh_app.pose.data.records import load_spec
from fedgh_app.pose.readers import read_records

ARM, MPII, LSPET, COCO = (load_spec(name) for name in ("arm", "mpii", "lspet", "coco"))


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


def test_coco_real_files(shared_data: Path) -> None:
    records, bad = read_records(COCO, shared_data / "coco")
    annotations = json.loads((shared_data / "coco" / "annotations.json").read_text())["annotations"]
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
            read_records(ARM, tmp_path, on_bad=on_bad)


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
            records, bad = read_records(spec, tmp_path, on_bad=on_bad)
        except UserError as error:
            assert "annotations.json" in str(error) or "images" in str(error)
        else:
            assert on_bad == "skip" or not bad
            for record in records:
                assert np.isfinite(record.keypoints).all() and record.visible.any() and record.reference_length > 0


def test_a_link_to_the_folder_of_images_is_followed_and_one_out_of_it_is_not(tmp_path: Path) -> None:
    root = write_arm(tmp_path / "data", 2)
    (root / "images").rename(tmp_path / "disk")
    (root / "images").symlink_to(tmp_path / "disk")
    assert len(read_records(ARM, root)[0]) == 2
    (tmp_path / "disk" / "001.jpg").rename(tmp_path / "disk" / "other.jpg")
    (tmp_path / "disk" / "001.jpg").symlink_to("other.jpg")
    assert len(read_records(ARM, root)[0]) == 2
    (tmp_path / "disk" / "other.jpg").rename(tmp_path / "outside.jpg")
    (tmp_path / "disk" / "001.jpg").unlink()
    (tmp_path / "disk" / "001.jpg").symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(UserError, match=r"annotation 101: image '001\.jpg' is a link that leads out of"):
        read_records(ARM, root)


def test_a_folder_that_is_a_link_out_of_the_images_is_not_even_listed(tmp_path: Path) -> None:
    root = write_arm(tmp_path / "data", 2)
    before = fingerprint(ARM, root, (32, 32))
    write_image(tmp_path / "outside" / "001.jpg")
    (root / "images" / "more").symlink_to(tmp_path / "outside")
    assert fingerprint(ARM, root, (32, 32)) == before
    content = arm_annotations(2)
    content["images"][1]["file_name"] = "more/001.jpg"
    (root / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"annotation 101: .*leads out of"):
        read_records(ARM, root)


def test_too_much_json_is_not_even_read(tmp_path: Path) -> None:
    root = write_arm(tmp_path, 1)
    with (root / "annotations.json").open("r+b") as file:
        file.truncate(2**29 + 1)  # sparse: it takes no room on the disk
    with pytest.raises(
        UserError, match=r"annotations\.json: found 536870913 bytes of JSON, expected at most 536870912"
    ):
        read_records(ARM, root)


def test_json_as_deep_as_the_stack_is_one_line(tmp_path: Path) -> None:
    root = write_arm(tmp_path, 1)
    (root / "annotations.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"annotations\.json: not valid JSON: .*recursion"):
        read_records(ARM, root)


@pytest.mark.parametrize("where", ["id", "attribute", "source"])
def test_a_name_too_long_for_an_array_is_a_bad_record(tmp_path: Path, where: str) -> None:
    content = arm_annotations(2)
    entry = content["annotations"][1] if where == "id" else content["images"][1]
    entry[where] = "x" * 1001
    root = write_arm(tmp_path, 2, content)
    with pytest.raises(UserError, match="has 1001 characters, expected at most 1000"):
        read_records(ARM, root)
