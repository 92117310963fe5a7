from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from folders import arm_annotations, write_arm
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fedgh_app.errors import UserError
from fedgh_app.pose.data.augmentation import Augmentation
from fedgh_app.pose.data.batches import MEAN, STD, Batches
from fedgh_app.pose.data.cache import CropCache, open_cache
from fedgh_app.pose.data.crops import apply_affine
from fedgh_app.pose.data.records import load_spec

STANDARD = Augmentation(rotation_deg=30, scale=0.25, translate=0.05, flip_probability=0.5)
CONF = Path(__file__).resolve().parents[3] / "conf" / "augmentation"


def dots(tmp_path: Path, count: int = 10) -> CropCache:
    """Images with a red, a green and a blue dot where shoulder, elbow and wrist are."""
    content = arm_annotations(count)
    root = write_arm(tmp_path / "arm", count, content)
    places = np.array([[10, 8], [20, 15], [29.5, 22]])
    columns, rows = np.meshgrid(np.arange(40), np.arange(30))
    for i in range(count):
        image = np.zeros((30, 40, 3))
        for channel, (x, y) in enumerate(places):
            image[:, :, 2 - channel] = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 1.5**2))
        name = root / "images" / f"{i:03d}.png"
        cv2.imwrite(str(name), image.astype(np.uint8))
        content["images"][i]["file_name"] = name.name
    write_arm(root, 0, content)
    return open_cache(load_spec("arm"), root, input_size=(48, 64), directory=tmp_path / "cache")


def gather(batches: Batches) -> dict[str, np.ndarray]:
    found = list(batches)
    names = ("images", "keypoints", "visible", "reference_length", "index")
    return {name: torch.cat([getattr(batch, name) for batch in found]).numpy() for name in names}


def test_without_augmentation_the_middle_of_the_crop(tmp_path: Path) -> None:
    cache = dots(tmp_path)
    batches = Batches(cache, [3, 1, 2], batch_size=2, seed=0, shuffle=False)
    got = gather(batches)
    assert got["images"].shape == (3, 3, 48, 64) and got["images"].dtype == np.float32
    assert got["index"].tolist() == [3, 1, 2]
    pixels = np.asarray(cache.crops)[[3, 1, 2], 12:60, 16:80]
    expected = (pixels / 255.0 - MEAN) / STD
    np.testing.assert_allclose(got["images"].transpose(0, 2, 3, 1), expected, atol=1e-5)
    np.testing.assert_allclose(got["keypoints"], cache.keypoints[[3, 1, 2]] - [16, 12], atol=1e-5)
    np.testing.assert_allclose(got["reference_length"], cache.reference_length[[3, 1, 2]])
    assert len(batches) == 2


def test_augmented_dots_lie_on_their_keypoints(tmp_path: Path) -> None:
    cache = dots(tmp_path, 24)
    asked = replace(STANDARD, translate=0.02)
    batches = Batches(cache, range(24), batch_size=5, augmentation=asked, seed=3, shuffle=True)
    got = gather(batches)
    height, width = got["images"].shape[2:]
    assert (height, width) == (48, 64)
    images = (got["images"].transpose(0, 2, 3, 1) * STD + MEAN).clip(0, 1)
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    rim = 12 * width // 64  # four standard deviations of a dot
    checked = 0
    for image, keypoints, visible in zip(images, got["keypoints"], got["visible"], strict=True):
        for channel in range(3):
            x, y = keypoints[channel]
            if not visible[channel] or not (rim <= x < width - rim and rim <= y < height - rim):
                continue  # cut by the border
            weight = image[:, :, channel]
            found = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
            np.testing.assert_allclose(found, [x, y], atol=0.1)
            checked += 1
    assert checked >= 20
    # Zoom changes the reference length as it changes all distances.
    limbs = np.linalg.norm(got["keypoints"][:, 0] - got["keypoints"][:, 1], axis=-1)
    np.testing.assert_allclose(got["reference_length"] / limbs, 24 / np.hypot(10, 7), rtol=1e-4)


def test_draws_stay_in_their_ranges(tmp_path: Path) -> None:
    cache = dots(tmp_path, 10)
    options: dict[str, Any] = {"batch_size": 4, "augmentation": STANDARD, "shuffle": False}
    got = [gather(Batches(cache, range(10), seed=seed, **options)) for seed in range(40)]
    keypoints = np.concatenate([part["keypoints"] for part in got])
    plain = gather(Batches(cache, range(10), batch_size=4, seed=0, shuffle=False))["keypoints"][0]
    limb, original = keypoints[:, 2] - keypoints[:, 0], plain[2] - plain[0]
    ratio = np.linalg.norm(limb, axis=1) / np.linalg.norm(original)
    assert 0.75 <= ratio.min() < 0.8 and 1.2 < ratio.max() <= 1.25
    flipped = limb[:, 0] < 0  # the limb goes right by 35 degrees, a rotation of 30 keeps it so
    assert 0.4 < flipped.mean() < 0.6
    turn = np.rad2deg(np.arctan2(limb[:, 1], np.abs(limb[:, 0])) - np.arctan2(original[1], original[0]))
    assert -30.01 <= turn.min() < -25 and 25 < turn.max() <= 30.01
    elbow = keypoints[:, 1] - [31.5, 23.5]  # the elbow is the box's centre, which only a shift moves
    assert (np.abs(elbow) <= [0.05 * 64 + 1e-3, 0.05 * 48 + 1e-3]).all() and (np.abs(elbow).max(0) > [2.5, 2]).all()


def test_flip_swaps_left_and_right(tmp_path: Path) -> None:
    cache = dots(tmp_path, 2)
    cache = replace(
        cache, spec=replace(cache.spec, flip_pairs=((0, 2),)), visible=np.array([[1, 1, 0]] * 2, dtype=bool)
    )
    plain = gather(Batches(cache, [0, 1], batch_size=2, seed=0, shuffle=False))
    flipped = gather(
        Batches(cache, [0, 1], batch_size=2, augmentation=Augmentation(flip_probability=1), seed=0, shuffle=False)
    )
    mirrored = plain["keypoints"] * [-1, 1] + [63, 0]
    np.testing.assert_allclose(flipped["keypoints"], mirrored[:, [2, 1, 0]], atol=1e-4)
    assert flipped["visible"].tolist() == [[False, True, True]] * 2
    np.testing.assert_allclose(flipped["images"], plain["images"][..., ::-1], atol=1e-5)
    assert cache.visible.tolist() == [[True, True, False]] * 2  # the cache itself is never written


def test_keypoints_pushed_out_count_as_invisible(tmp_path: Path) -> None:
    cache = dots(tmp_path, 8)
    got = gather(
        Batches(cache, range(8), batch_size=8, augmentation=Augmentation(translate=0.9), seed=0, shuffle=False)
    )
    inside = ((got["keypoints"] >= -0.5) & (got["keypoints"] <= np.array([63.5, 47.5]))).all(-1)
    assert (got["visible"] == inside).all() and 0 < inside.mean() < 1
    far = replace(cache, keypoints=cache.keypoints + 500)
    kept = gather(Batches(far, range(8), batch_size=8, seed=0, shuffle=False))
    assert kept["visible"].all()  # in an evaluation such a keypoint counts, as a miss


def test_a_pass_is_a_function_of_seed_and_number(tmp_path: Path) -> None:
    cache = dots(tmp_path)
    options: dict[str, Any] = {"batch_size": 3, "augmentation": STANDARD, "shuffle": True}
    first, second = Batches(cache, range(10), seed=5, **options), Batches(cache, range(10), seed=5, **options)
    one, two = gather(first), gather(first)
    for name, values in gather(second).items():
        np.testing.assert_array_equal(values, one[name])
    assert not np.array_equal(one["index"], two["index"])  # the next epoch is another one
    other = gather(Batches(cache, range(10), seed=6, **options))
    assert not np.array_equal(other["keypoints"], one["keypoints"])
    larger = gather(Batches(cache, range(10), seed=5, **options | {"batch_size": 10}))
    np.testing.assert_array_equal(larger["keypoints"], one["keypoints"])
    assert sorted(one["index"]) == list(range(10))
    gather(Batches(cache, range(10), seed=-1, **options))


@pytest.mark.parametrize(
    ("count", "size", "shuffle", "sizes"),
    [
        (10, 4, False, [4, 4, 2]),
        (9, 4, False, [4, 4, 1]),
        (9, 4, True, [4, 5]),
        (8, 4, True, [4, 4]),
        (1, 4, True, [1]),
        (3, 1, True, [1, 2]),
        (0, 4, True, []),
    ],
)
def test_batch_sizes(tmp_path: Path, count: int, size: int, shuffle: bool, sizes: list[int]) -> None:
    batches = Batches(dots(tmp_path), range(count), batch_size=size, seed=0, shuffle=shuffle)
    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == len(sizes)


def test_mapped_points_return_to_the_image(tmp_path: Path) -> None:
    """Predictions are drawn by way of `to_image`: cached crop to image."""
    cache = dots(tmp_path)
    got = gather(Batches(cache, range(4), batch_size=4, seed=0, shuffle=False))
    in_crop = got["keypoints"] + [16, 12]
    np.testing.assert_allclose(apply_affine(in_crop, cache.to_image[:4])[2], [[10, 8], [20, 15], [29.5, 22]], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", Augmentation()),
        ("standard", STANDARD),
        ("strong", Augmentation(45, 0.35, 0.05, 0.5, 0.3, 9, 0.5, 0.4, 0.4, 0.4, 0.4, 0.1)),
    ],
)
def test_configs(name: str, expected: Augmentation) -> None:
    assert instantiate(OmegaConf.load(CONF / f"{name}.yaml")) == expected
    shown = set(OmegaConf.load(CONF / f"{name}.yaml")) - {"_target_"}
    assert shown == set(Augmentation.__dataclass_fields__)


@pytest.mark.parametrize(
    "changes",
    [
        {"rotation_deg": -1},
        {"scale": 1.0},
        {"flip_probability": 2},
        {"translate": "far"},
        {"scale": None},
        {"half_body_probability": True},
        {"half_body_min_visible": 2},
        {"occlusion_size": 1.5},
        {"hue": 0.6},
    ],
)
def test_bad_augmentation(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"augmentation.{next(iter(changes))}="):
        Augmentation(**changes)


def test_bad_arguments(tmp_path: Path) -> None:
    cache = dots(tmp_path)
    with pytest.raises(UserError, match="batch_size=0"):
        Batches(cache, [0], batch_size=0, seed=0, shuffle=True)
    with pytest.raises(ValueError, match="indices"):
        Batches(cache, [10], batch_size=1, seed=0, shuffle=True)
