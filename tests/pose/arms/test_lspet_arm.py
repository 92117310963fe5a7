import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io

from fedgh_app.errors import UserError
from fedgh_app.pose.arms.lspet import arms_of, cut, direction
from fedgh_app.pose.data.records import load_spec
from fedgh_app.pose.data.split import split_records
from fedgh_app.pose.readers import read_records


def _person(right: list[tuple[float, float]] | None, left: list[tuple[float, float]] | None) -> np.ndarray:
    """Joints (14, 3) with arms given as shoulder, elbow, wrist; everything else is not annotated."""
    joints = np.zeros((14, 3))
    for rows, points in (((8, 7, 6), right), ((9, 10, 11), left)):
        for row, point in zip(rows, points or [], strict=False):
            joints[row] = (*point, 1)
    return joints


@pytest.fixture
def lspet(tmp_path: Path) -> Path:
    root = tmp_path / "lspet"
    (root / "images").mkdir(parents=True)
    people = [
        _person([(60, 50), (80, 52), (100, 54)], [(50, 50), (45, 70), (48, 90)]),  # right and down
        _person([(60, 80), (62, 60), (58, 30)], None),  # up
        _person([(60, 50), (64, 50), (68, 50)], [(60, 50), (40, 50), (-3, 50)]),  # too short; out of bounds
        _person(None, [(100, 50), (80, 50), (60, 50)]),  # left, without any height
    ]
    scipy.io.savemat(root / "joints.mat", {"joints": np.stack(people, axis=2)})
    rng = np.random.default_rng(0)
    for number in range(1, 5):
        photograph = cv2.resize(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8), (160, 120))
        cv2.imwrite(str(root / "images" / f"im{number:05d}.jpg"), photograph)
    return root


def test_directions_worked_by_hand() -> None:
    origin = np.zeros(2)
    expected = {
        (5, 1): "right",
        (-5, 4): "left",
        (1, -5): "up",
        (-1, 5): "down",
        (3, 3): "down",
        (3, -3): "up",
    }
    assert {wrist: direction(origin, np.array(wrist, float)) for wrist in expected} == expected


def test_arms_become_images_with_their_joints(lspet: Path, tmp_path: Path) -> None:
    root = cut(lspet, tmp_path / "out")
    content = json.loads((root / "annotations.json").read_text())
    found = [(i["file_name"], i["source"], i["side"], i["direction"]) for i in content["images"]]
    assert found == [
        ("im00001_right.jpg", "im00001.jpg", "right", "right"),
        ("im00001_left.jpg", "im00001.jpg", "left", "down"),
        ("im00002_right.jpg", "im00002.jpg", "right", "up"),
        ("im00004_left.jpg", "im00004.jpg", "left", "left"),
    ]
    # Extent 40 x 4 about (80, 52): a patch of 120 px from (20, -8), clipped to (20, 0)-(140, 112).
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (120, 112)
    assert content["annotations"][0]["keypoints"] == [40, 50, 2, 60, 52, 2, 80, 54, 2]
    assert content["annotations"][0]["bbox"] == [40, 50, 40, 4]
    assert content["annotations"][3]["bbox"][2:] == [40, 1]  # a box needs an area


def test_patches_are_pixels_of_the_photograph_at_the_joints(lspet: Path, tmp_path: Path) -> None:
    root = cut(lspet, tmp_path / "out")
    content = json.loads((root / "annotations.json").read_text())
    patch = cv2.imread(str(root / "images" / "im00001_right.jpg")).astype(int)
    photograph = cv2.imread(str(lspet / "images" / "im00001.jpg")).astype(int)
    x, y = (round(value) for value in content["annotations"][0]["keypoints"][:2])
    assert np.abs(patch[y - 5 : y + 6, x - 5 : x + 6] - photograph[45:56, 55:66]).mean() < 4  # JPEG, twice


def test_reader_groups_both_arms_of_a_photograph(lspet: Path, tmp_path: Path) -> None:
    records, bad = read_records(load_spec("lspet_arm"), cut(lspet, tmp_path / "out"))
    assert not bad and [record.group for record in records[:2]] == ["im00001.jpg"] * 2
    assert records[0].attributes == {"direction": "right", "side": "right"}
    assert [record.reference_length for record in records] == [40, 40, 50, 40]


def test_arms_with_a_missing_joint_are_left_out() -> None:
    joints = _person([(60, 50), (80, 52), (100, 54)], [(50, 50), (45, 70), (48, 90)])
    joints[7, 2] = 0
    assert list(arms_of(joints)) == ["left"]
    joints[11, 0] = np.nan
    assert arms_of(joints) == {}


def test_same_cut_is_left_alone_and_other_folders_are_refused(lspet: Path, tmp_path: Path) -> None:
    root = cut(lspet, tmp_path / "out")
    before = (root / "annotations.json").stat().st_mtime_ns
    assert cut(lspet, root) == root
    assert (root / "annotations.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="did not write"):
        cut(lspet, lspet)
    assert (lspet / "joints.mat").is_file()


def test_missing_or_wrong_sources_are_named(lspet: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"joints\.mat: file is missing.*http://sam\.johnson\.io"):
        cut(tmp_path / "nowhere", tmp_path / "out")
    (lspet / "images" / "im00002.jpg").unlink()
    with pytest.raises(UserError, match=r"im00002\.jpg"):
        cut(lspet, tmp_path / "out")
    scipy.io.savemat(lspet / "joints.mat", {"joints": np.zeros((3, 14, 5))})
    with pytest.raises(UserError, match=r"joints\.mat.*\(3, 14, 5\).*\(14, 3, N\)"):
        cut(lspet, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_real_photographs(tmp_path: Path, shared_data: Path) -> None:
    """The first 300 people: the whole set has 6,147 arms."""
    joints = scipy.io.loadmat(shared_data / "lspet" / "joints.mat")["joints"][:, :, :300]
    (tmp_path / "some").mkdir()
    scipy.io.savemat(tmp_path / "some" / "joints.mat", {"joints": joints})
    (tmp_path / "some" / "images").symlink_to(shared_data / "lspet" / "images")
    spec = load_spec("lspet_arm")
    records, bad = read_records(spec, cut(tmp_path / "some", tmp_path / "out"))
    assert not bad and 400 < len(records) < 600
    directions = Counter(record.attributes["direction"] for record in records)
    assert directions.keys() == {"down", "up", "left", "right"} and min(directions.values()) > 30
    sides = dict[str, set[str]]()
    for record, split in zip(records, split_records(records, spec), strict=True):
        sides.setdefault(record.group, set()).add(split)
    assert all(len(words) == 1 for words in sides.values())
