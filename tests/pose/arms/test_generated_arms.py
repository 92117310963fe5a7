import json
import math
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from fedgh_app.errors import UserError
from fedgh_app.pose.arms.generated import draw, generate, kind_of
from fedgh_app.pose.arms.render import _distance
from fedgh_app.pose.arms.scene import FOREARM, POSTURES, UPPER_ARM, VIEWPOINTS, Camera, sample_scene
from fedgh_app.pose.data.records import load_spec
from fedgh_app.pose.readers import read_records

SIZE = (96, 96)
STANDARD = {"id", "file_name", "width", "height", "license", "split"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("arm") / "data", count=40, image_size=SIZE, workers=1)


def _content(folder: Path) -> dict:
    return json.loads((folder / "annotations.json").read_text())


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "images").iterdir())}


def test_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = generate(tmp_path / "again", count=40, image_size=SIZE, workers=1)
    assert _files(again) == _files(folder)
    assert (again / "annotations.json").read_bytes() == (folder / "annotations.json").read_bytes()


def test_processes_draw_what_one_process_draws(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    generate(one, count=80, image_size=(48, 40), seed=3, workers=1)
    generate(two, count=80, image_size=(48, 40), seed=3, workers=2)
    assert len(_files(one)) == 80
    assert _files(one) == _files(two)
    assert _content(one) == _content(two)


def test_an_image_does_not_depend_on_how_many_there_are(folder: Path, tmp_path: Path) -> None:
    few = generate(tmp_path / "few", count=9, image_size=SIZE, workers=1)
    assert _files(few).items() <= _files(folder).items()
    assert _content(few)["annotations"] == _content(folder)["annotations"][:9]
    assert _content(few)["images"] == _content(folder)["images"][:9]


def test_another_seed_gives_other_images(folder: Path, tmp_path: Path) -> None:
    other = _files(generate(tmp_path / "other", count=4, seed=1, image_size=SIZE, workers=1))
    assert all(data != _files(folder)[name] for name, data in other.items())


def test_viewpoints_postures_and_splits_are_balanced() -> None:
    labels = [tuple(kind_of(i).values()) for i in range(2060)]
    assert Counter(view for view, _, _ in labels) == dict.fromkeys(VIEWPOINTS, 515)
    postures = Counter((view, posture) for view, posture, _ in labels)
    assert all(postures[view, "upright"] == 258 and postures[view, "extended"] == 257 for view in VIEWPOINTS)
    test = Counter((view, posture) for view, posture, split in labels if split == "test")
    assert test == {(view, posture): 51 for view in VIEWPOINTS for posture in POSTURES}


def test_file_is_coco_keypoint_json(folder: Path) -> None:
    content = _content(folder)
    assert content["categories"] == [
        {
            "id": 1,
            "name": "arm",
            "supercategory": "person",
            "keypoints": ["shoulder", "elbow", "wrist"],
            "skeleton": [[1, 2], [2, 3]],
        }
    ]
    assert content["licenses"][0]["id"] == 1
    assert [image["id"] for image in content["images"]] == list(range(1, 41))
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        assert set(image) == STANDARD | {"viewpoint", "posture"}
        assert cv2.imread(str(folder / "images" / image["file_name"])).shape == (96, 96, 3)
        assert annotation["image_id"] == image["id"] and annotation["category_id"] == 1
        assert annotation["iscrowd"] == 0 and annotation["num_keypoints"] == 3
        points = np.array(annotation["keypoints"]).reshape(3, 3)
        assert set(points[:, 2]) <= {1, 2}
        x, y, width, height = annotation["bbox"]
        assert 0 < annotation["area"] <= width * height
        assert ((points[:, :2] >= [x - 0.5, y - 0.5]) & (points[:, :2] <= [x + width, y + height])).all()
        assert x >= 0 and y >= 0 and x + width <= 96 and y + height <= 96


def test_the_projects_own_reader_takes_it(folder: Path) -> None:
    records, bad = read_records(load_spec("arm"), folder)
    assert len(records) == 40 and not bad
    assert records[1].attributes == {"viewpoint": "left", "posture": "upright"}
    assert Counter(record.split for record in records) == {"train": 32, "test": 8}
    assert records[0].reference_length == max(_content(folder)["annotations"][0]["bbox"][2:])


@pytest.mark.parametrize("index", range(16))  # every viewpoint and posture twice
def test_joints_lie_on_the_drawn_limb(index: int) -> None:
    rendering = draw(index, seed=5, image_size=(128, 112))
    width, height = 128, 112
    assert rendering.image.shape == (height, width, 3)
    for x, y in rendering.joints:
        assert 0 <= x < width and 0 <= y < height
        assert rendering.limb[round(y), round(x)]


def test_limb_pixels_have_the_arms_colours() -> None:
    """An independent look at the picture: skin and shirt, not wall, lie along the bones."""
    near = total = 0
    for index in range(24):
        rendering = draw(index, seed=0, image_size=(160, 160))
        for a, b in ((0, 1), (1, 2)):
            for share in (0.25, 0.5, 0.75):
                x, y = (1 - share) * rendering.joints[a] + share * rendering.joints[b]
                red, _, blue = rendering.image[round(y), round(x)].astype(int)
                near += red > 1.15 * blue or blue > 1.5 * red  # skin, or the shirt's teal
                total += 1
    assert near / total > 0.75  # the rest is behind the robot


def test_some_joints_are_hidden_but_not_most() -> None:
    hidden = np.array([draw(i, seed=0, image_size=(64, 64)).hidden for i in range(80)])
    assert 0.03 < hidden.mean() < 0.35


def test_arm_keeps_its_lengths_and_postures_differ() -> None:
    bends: dict[str, list[float]] = {"upright": [], "extended": []}
    for index in range(60):
        for posture in POSTURES:
            scene = sample_scene(np.random.default_rng(index), "front", posture, SIZE)
            upper, fore = np.diff(scene.joints, axis=0)
            assert np.linalg.norm(upper) == pytest.approx(UPPER_ARM)
            assert np.linalg.norm(fore) == pytest.approx(FOREARM)
            bends[posture].append(math.degrees(math.acos(upper @ fore / UPPER_ARM / FOREARM)))
    assert max(bends["extended"]) < 40 < 60 < min(bends["upright"])
    assert max(bends["upright"]) < 150  # what an elbow can do


def test_camera_projects_by_hand() -> None:
    # At the origin looking along +y: right is +x, down is -z. Size 101 x 51: the middle pixel is (50, 25).
    rotation = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
    camera = Camera(np.zeros(3), rotation, 100.0, (101, 51))
    points = camera.project(np.array([[0.0, 2.0, 0.0], [0.5, 2.0, 0.0], [0.0, 2.0, 0.2]]))
    assert np.allclose(points, [[50, 25], [75, 25], [50, 15]])


def test_ray_meets_cone_where_marching_meets_it() -> None:
    """Closed formula against sphere tracing of the rounded cone as a union of spheres."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        start, end = rng.uniform([-0.5, -0.5, 2], [0.5, 0.5, 3], (2, 3))
        radius = rng.uniform(0.02, 0.2, 2)
        rays = np.append(rng.uniform(-0.3, 0.3, (2, 12)), np.ones((1, 12)), axis=0)
        rays /= np.linalg.norm(rays, axis=0)
        found = _distance(rays.reshape(3, 3, 4).astype(np.float32), start, end, radius).reshape(-1)
        for ray, distance in zip(rays.T, found, strict=True):
            marched, closest = _march(ray, start, end, radius)
            if marched is not None:
                assert distance == pytest.approx(marched, abs=2e-3)
            elif closest > 1e-3:  # not a grazing ray, where float32 may decide either way
                assert distance > 1e5


def _march(ray: np.ndarray, start: np.ndarray, end: np.ndarray, radius: np.ndarray) -> tuple[float | None, float]:
    """Distance at which the ray enters the spheres along the axis, and the least clearance it had."""
    share = np.linspace(0, 1, 400)[:, None]
    centres, radii = start + share * (end - start), radius[0] + share[:, 0] * (radius[1] - radius[0])
    along, closest = 0.0, math.inf
    while along < 6:
        gap = float((np.linalg.norm(ray * along - centres, axis=1) - radii).min())
        closest = min(closest, gap)
        if gap < 1e-4:
            return along, gap
        along += gap
    return None, closest


def test_the_same_data_are_left_alone_and_others_replaced(tmp_path: Path) -> None:
    root = generate(tmp_path / "data", count=3, image_size=(48, 48), workers=1)
    before = (root / "annotations.json").stat().st_mtime_ns
    calls: list[tuple[int, int]] = []
    generate(root, count=3, image_size=(48, 48), progress=lambda *at: calls.append(at))
    assert (root / "annotations.json").stat().st_mtime_ns == before and not calls
    (root / "images" / "000002.jpg").unlink()
    generate(root, count=3, image_size=(48, 48), progress=lambda *at: calls.append(at), workers=1)
    assert len(_files(root)) == 3 and calls == [(3, 3)]
    generate(root, count=5, image_size=(48, 48), workers=1)
    assert len(_files(root)) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["data"]  # no stage is left


def test_foreign_folders_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="did not write"):
        generate(tmp_path, count=1)
    (tmp_path / "annotations.json").write_text('{"info": {"made_by": {"program": "my own"}}, "images": []}')
    with pytest.raises(UserError, match="did not write"):
        generate(tmp_path, count=1)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(UserError, match="is a file"):
        generate(tmp_path / "thesis.tex", count=1)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "data", count=2, image_size=(48, 48), progress=stop, workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"count": 0}, {"seed": -1}, {"image_size": (16, 256)}])
def test_senseless_requests_are_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(UserError):
        generate(tmp_path / "data", **wrong)
