"""PCK of Leeds Sports Pose by hand: torso lengths, whole groups of joints, both layouts of the file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import load_spec
from fedgh_app.pose.official import pck, score

LSPET = load_spec("lspet")
# A torso from the left shoulder (9) at (40, 20) to the right hip (2) at (10, 60): 50 px, so 0.2 of it is 10.
LEGS = [[10, 100], [10, 80], [10, 60], [30, 60], [30, 80], [30, 100]]
ARMS = [[0, 50], [5, 35], [10, 20], [40, 20], [45, 35], [50, 50]]
HEAD = [[25, 10], [25, 0]]
JOINTS = np.array([*LEGS, *ARMS, *HEAD], dtype=float)


def truth(path: Path, flags: np.ndarray, *, extended: bool = True) -> Path:
    """``joints.mat`` of people who all stand at JOINTS; ``flags`` (N, 14) is the file's third number."""
    people = np.concatenate([np.repeat(JOINTS[None], len(flags), 0), flags[..., None]], -1)
    scipy.io.savemat(path, {"joints": people.transpose(1, 2, 0) if extended else people.transpose(2, 1, 0)})
    return path


def predictions(path: Path, points: np.ndarray, first: int = 1) -> Path:
    entries = [
        {
            "image_id": first + place,
            "category_id": 1,
            "keypoints": np.concatenate([person, np.ones((14, 1))], -1).ravel().tolist(),
            "score": 1.0,
        }
        for place, person in enumerate(points)
    ]
    path.write_text(json.dumps(entries))
    return path


def test_pck_by_hand(tmp_path: Path) -> None:
    flags = np.ones((2, 14))
    flags[1, 11] = 0  # the second's left wrist was not placed
    points = np.repeat(JOINTS[None], 2, 0)
    points[0, 12, 0] += 10  # the neck, just right at 0.2: the head is neck and head top
    points[0, 6, 1] += 10.5  # a wrist
    points[1, 11] += 99
    points[1, 2, 0] -= 6  # a hip, right at 0.2 and not at 0.1
    found = pck.score(LSPET, truth(tmp_path / "joints.mat", flags), predictions(tmp_path / "p.json", points))
    coarse, fine = found.rows["PCK@0.2"], found.rows["PCK@0.1"]
    assert list(coarse) == ["head", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "mean", "auc"]
    assert coarse["wrist"] == pytest.approx(100 * (1 / 2 + 1) / 2)
    assert {coarse[name] for name in ("head", "shoulder", "elbow", "hip", "knee", "ankle")} == {100.0}
    assert coarse["mean"] == pytest.approx(100 * 13.5 / 14)
    assert (fine["head"], fine["hip"]) == (pytest.approx(75), pytest.approx(75))
    assert fine["mean"] == pytest.approx(100 * (14 - 3 * 0.5) / 14)
    assert found.people == 2


def test_torsos_of_other_joints_are_told_joint_by_joint(tmp_path: Path) -> None:
    other = replace(LSPET, keypoints=tuple("crown" if name == "head_top" else name for name in LSPET.keypoints))
    joints, points = truth(tmp_path / "joints.mat", np.ones((2, 14))), np.repeat(JOINTS[None], 2, 0)
    found = pck.score(other, joints, predictions(tmp_path / "p.json", points))
    assert list(found.rows["PCK@0.2"]) == [*other.keypoints, "mean", "auc"]


def test_left_and_right_are_the_persons(tmp_path: Path) -> None:
    swapped = JOINTS[LSPET.flip_permutation][None]
    file = truth(tmp_path / "joints.mat", np.ones((1, 14)))
    found = pck.score(LSPET, file, predictions(tmp_path / "p.json", swapped)).rows["PCK@0.2"]
    assert found["head"] == 100
    assert {found[name] for name in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")} == {0.0}


def test_joints_that_lsp_calls_hidden_count(tmp_path: Path) -> None:
    hidden = np.zeros((1, 14))
    hidden[0, [9, 11]] = 1  # in this layout 1 is hidden: the left shoulder, so half the torso, and a wrist
    points = JOINTS[None] + np.eye(14)[11][:, None] * [0, 10.5]
    file = truth(tmp_path / "joints.mat", hidden, extended=False)
    found = pck.score(LSPET, file, predictions(tmp_path / "p.json", points)).rows["PCK@0.2"]
    assert found["wrist"] == 50


def test_the_second_half_of_lsp_is_for_testing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedgh_app.pose.readers.lsp.LSP_PEOPLE", 20)
    file = truth(tmp_path / "joints.mat", np.zeros((20, 14)), extended=False)
    half = predictions(tmp_path / "p.json", np.repeat(JOINTS[None], 10, 0), first=11)
    found = score("lsp", file, half, side="test")
    assert (found.people, found.rows["PCK@0.2"]["mean"]) == (10, 100)
    with pytest.raises(UserError, match=r"10 of 20 people, first im0001 \(image 1\)"):
        score("lsp", file, half)
    with pytest.raises(UserError, match="--split second: expected all, train, test"):
        score("lsp", file, half, side="second")


def test_real_people(shared_data: Path, tmp_path: Path) -> None:
    """Every joint at the image's corner, but for those of person 1: by a second reading of the file."""
    joints = scipy.io.loadmat(shared_data / "lspet" / "joints.mat")["joints"].transpose(2, 0, 1)
    points = np.zeros((len(joints), 14, 2))
    points[0] = joints[0, :, :2]
    file = shared_data / "lspet" / "joints.mat"
    found = pck.score(LSPET, file, predictions(tmp_path / "p.json", points)).rows["PCK@0.2"]
    torso = np.linalg.norm(joints[:, 9, :2] - joints[:, 2, :2], axis=1)
    whole = (joints[:, 9, 2] == 1) & (joints[:, 2, 2] == 1)
    placed = joints[:, :, 2] == 1
    near = (np.linalg.norm(points - joints[:, :, :2], axis=2) <= 0.2 * torso[:, None]) & whole[:, None]
    least = 100 * np.mean((near & placed).sum(0) / placed.sum(0))
    assert least <= found["mean"] <= least + 100 * (~whole).mean()
