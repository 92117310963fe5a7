from pathlib import Path

import numpy as np
import pytest
import yaml

from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import load_spec
from fedgh_app.resources import DATASETS
from fedgh_app.tasks import spec_names


def test_described_data_sets() -> None:
    assert {"arm", "coco", "lspet", "lspet_arm", "mpii"} <= set(spec_names())


@pytest.mark.parametrize("name", spec_names())
def test_spec_is_consistent(name: str) -> None:
    spec = load_spec(name)
    permutation = spec.flip_permutation
    assert (permutation[permutation] == np.arange(spec.num_keypoints)).all()
    for index, keypoint in enumerate(spec.keypoints):  # names say which keypoints are each other's mirror image
        swapped = keypoint.replace("left_", "RIGHT_").replace("right_", "left_").replace("RIGHT_", "right_")
        assert spec.keypoints[permutation[index]] == swapped
    assert all(0 <= end < spec.num_keypoints for limb in spec.skeleton for end in limb)
    assert hash(spec) == hash(load_spec(name))


def test_arm_by_hand() -> None:
    spec = load_spec("arm")
    assert spec.keypoints == ("shoulder", "elbow", "wrist")
    assert spec.skeleton == ((0, 1), (1, 2))
    assert (spec.flip_pairs, spec.thresholds[0], spec.test_fraction) == ((), 0.2, 0.2)
    assert (spec.format, spec.metric, spec.reference) == ("coco", "pck", "box")


def test_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UserError, match="lspet"):
        load_spec("lspett")
    with pytest.raises(UserError, match="no such data set"):
        load_spec("../pyproject")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("keypoints", [], "distinct names"),
        ("keypoints", ["elbow", "elbow"], "distinct names"),
        ("flip_pairs", [["shoulder", "knee"]], "flip_pairs"),
        ("flip_pairs", [["shoulder", "elbow"], ["elbow", "wrist"]], "two pairs"),
        ("flip_pairs", [["shoulder", "shoulder"]], "own partner"),
        ("skeleton", [["shoulder"]], "skeleton"),
        ("metric", "oks", "metric='oks'"),
        ("thresholds", [], "thresholds"),
        ("thresholds", ["wide"], "must be numbers"),
        ("test_fraction", 1.5, "test_fraction"),
        ("surprise", 1, "unknown keys"),
        ("upper_body", ["shoulder", "hip"], "upper_body"),
        ("upper_body", "shoulder", "upper_body"),
    ],
)
def test_bad_spec_names_file_and_key(tmp_path: Path, key: str, value: object, message: str) -> None:
    values = yaml.safe_load((DATASETS / "arm.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values | {key: value}))
    with pytest.raises(UserError, match=message) as caught:
        load_spec("mine", tmp_path)
    assert "mine.yaml" in str(caught.value)


@pytest.mark.parametrize("text", ["- 1", "a: [", "\0"])
def test_spec_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml"):
        load_spec("mine", tmp_path)
