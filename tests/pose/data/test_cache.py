import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from folders import arm_annotations, write_arm, write_image

from fedgh_app.errors import UserError
from fedgh_app.pose.data import cache as cache_module
from fedgh_app.pose.data.batches import Batches, normalised
from fedgh_app.pose.data.cache import crop_size, network_input, open_cache
from fedgh_app.pose.data.crops import apply_affine
from fedgh_app.pose.data.records import load_spec
from fedgh_app.pose.readers import read_records
from fedgh_app.vision.images import is_truncated, read_image

ARM = load_spec("arm")


def open_arm(root: Path, directory: Path, **changes: Any) -> cache_module.CropCache:
    return open_cache(ARM, root, **({"input_size": (32, 24), "directory": directory} | changes))


def builds(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_dir())


def test_crop_size_adds_the_same_on_both_sides() -> None:
    assert crop_size((64, 48)) == (96, 72)
    for side in range(1, 70):
        height, _ = crop_size((side, side))
        assert (height - side) % 2 == 0 and abs(height - 1.5 * side) <= 1


def test_content(tmp_path: Path) -> None:
    cache = open_arm(write_arm(tmp_path / "arm", 6), tmp_path / "cache")
    assert len(cache) == 6
    assert cache.crops.shape == (6, 48, 36, 3) and cache.crops.dtype == np.uint8
    assert not cache.crops.flags.writeable and not cache.keypoints.flags.writeable
    assert cache.ids.tolist() == [str(100 + i) for i in range(6)]
    assert cache.images[2] == str(tmp_path / "arm" / "images" / "002.jpg")
    assert cache.attributes["viewpoint"].tolist() == ["v0", "v1"] * 3
    assert cache.group.tolist() == [f"{i:03d}.jpg" for i in range(6)]
    assert sorted([*cache.indices("train"), *cache.indices("test")]) == list(range(6))
    # The box is 24 x 18 around (20, 15), the input 24 wide: 24 / (1.25 * 24) = 0.8 of an image pixel.
    np.testing.assert_allclose(cache.reference_length, 24 * 0.8, rtol=1e-6)
    np.testing.assert_allclose(cache.keypoints[0, 1], [35 / 2, 47 / 2], atol=1e-5)  # the elbow is the centre
    np.testing.assert_allclose(cache.keypoints[0, 0], [17.5 - 8, 23.5 - 5.6], atol=1e-5)
    back = apply_affine(cache.keypoints, cache.to_image)
    np.testing.assert_allclose(back[3], [[10, 8], [20, 15], [29.5, 22]], atol=1e-4)


def test_colours_are_rgb(tmp_path: Path) -> None:
    root = write_arm(tmp_path / "arm", 1)
    image = np.zeros((30, 40, 3), dtype=np.uint8)
    image[..., 2] = 255  # red, in OpenCV's order
    cv2.imwrite(str(root / "images" / "000.jpg"), image)
    middle = open_arm(root, tmp_path / "cache").crops[0, 24, 18]
    assert middle[0] > 240 and middle[1:].max() < 15


def test_second_opening_builds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_arm(tmp_path / "arm")
    first = open_arm(root, tmp_path / "cache")
    cache_module._load.cache_clear()
    monkeypatch.setattr(cache_module, "_build", lambda *_: pytest.fail("built again"))
    second = open_arm(root, tmp_path / "cache")
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(first.crops, second.crops)
    assert open_arm(root, tmp_path / "cache") is second  # and in one process it is not even read again


def test_what_it_depends_on(tmp_path: Path) -> None:
    root, directory = write_arm(tmp_path / "arm"), tmp_path / "cache"
    prints = [open_arm(root, directory).fingerprint]
    prints.append(open_arm(root, directory, input_size=(24, 32)).fingerprint)
    content = arm_annotations(4)
    content["annotations"][0]["bbox"][0] = 9  # the file's size stays
    (root / "annotations.json").write_text(json.dumps(content))
    prints.append(open_arm(root, directory).fingerprint)
    write_image(root / "images" / "001.jpg", seed=99)
    prints.append(open_arm(root, directory).fingerprint)
    os.utime(root / "images" / "002.jpg", (1, 1))
    prints.append(open_arm(root, directory).fingerprint)
    prints.append(open_arm(write_arm(tmp_path / "other"), directory).fingerprint)
    assert len(set(prints)) == len(prints) and builds(directory) == sorted(prints)


def test_damaged_cache_is_built_again(tmp_path: Path) -> None:
    root, directory = write_arm(tmp_path / "arm"), tmp_path / "cache"
    good = open_arm(root, directory)
    pixels = np.array(good.crops)
    crops = directory / good.fingerprint / "crops.u8"
    for damage in (
        lambda: crops.write_bytes(crops.read_bytes()[:-1]),
        lambda: (crops.parent / "meta.json").write_text("{"),
        lambda: (crops.parent / "arrays.npz").unlink(),
    ):
        damage()
        np.testing.assert_array_equal(open_arm(root, directory).crops, pixels)
    assert builds(directory) == [good.fingerprint]


def test_interrupted_build_leaves_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, directory = write_arm(tmp_path / "arm"), tmp_path / "cache"

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache_module.cache, "write_columns", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_arm(root, directory)
    assert builds(directory) == []
    name = cache_module.fingerprint(ARM, root, (32, 24))
    (directory / f"{name}.part123").mkdir()  # what a killed process leaves
    (directory / f"{name}.part123" / "crops.u8").write_bytes(b"half")
    assert len(open_arm(root, directory)) == 4
    assert builds(directory) == [name]


def _open_and_report(root: Path, directory: Path, queue: Any) -> None:
    built = []
    original = cache_module._build
    cache_module._build = lambda *args: (built.append(1), original(*args))[1]
    cache = open_arm(root, directory)
    queue.put((len(built), int(np.asarray(cache.crops, dtype=np.int64).sum())))


def test_processes_that_ask_at_once_build_once(tmp_path: Path) -> None:
    root, directory = write_arm(tmp_path / "arm", 40), tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_open_and_report, args=(root, directory, queue)) for _ in range(4)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert sum(count for count, _ in results) == 1
    assert len({total for _, total in results}) == 1


# Bad images -----------------------------------------------------------------------------------------------


def spoil(root: Path, how: str) -> str:
    """Make image 001 bad; returns what the message should say."""
    path = root / "images" / "001.jpg"
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) * 2 // 3])
        return r"001\.jpg: image is truncated"
    if how == "header only":
        path.write_bytes(data[:20])
        return r"001\.jpg: image is truncated"
    if how == "empty":
        path.write_bytes(b"")
        return r"001\.jpg: image file is empty"
    if how == "text":
        path.write_text("<html>404</html>")
        return r"001\.jpg: not an image"
    if how == "size":
        write_image(path, 30, 40)
        return r"001\.jpg: image is 30x40, its annotation says 40x30"
    assert how == "box"
    content = arm_annotations(4)
    content["annotations"][1]["bbox"] = [40, 0, 10, 10]
    (root / "annotations.json").write_text(json.dumps(content))
    return r"001\.jpg: box \[40\.0, 0\.0, 10\.0, 10\.0\] of record 101 lies outside the 40x30 image"


@pytest.mark.parametrize("how", ["truncated", "header only", "empty", "text", "size", "box"])
def test_bad_image_is_named_or_counted(tmp_path: Path, how: str) -> None:
    root, directory = write_arm(tmp_path / "arm"), tmp_path / "cache"
    message = spoil(root, how)
    with pytest.raises(UserError, match=message) as caught:
        open_arm(root, directory)
    assert builds(directory) == []
    cache = open_arm(root, directory, on_bad="skip")
    assert cache.ids.tolist() == ["100", "102", "103"] and cache.keypoints.shape[0] == 3
    assert [str(entry) for entry in cache.bad] == [str(caught.value)]
    with pytest.raises(UserError, match=message):  # skipping once is no consent for the next run
        open_arm(root, directory)


def test_nothing_usable(tmp_path: Path) -> None:
    root = write_arm(tmp_path / "arm", 1)
    (root / "images" / "000.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"no usable pose of data set arm \(1 bad records\)"):
        open_arm(root, tmp_path / "cache", on_bad="skip")


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
def test_truncation_by_format(extension: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    done, encoded = cv2.imencode(extension, pixels)
    data = encoded.tobytes()
    assert done and not is_truncated(data)
    if extension != ".webp":
        assert not is_truncated(data + b"\0" * 10)  # padding after the end is common and harmless
    for keep in (0.3, 0.6, 0.95):
        assert is_truncated(data[: int(keep * len(data))])


def test_a_thumbnails_end_is_not_the_images_end() -> None:
    _, encoded = cv2.imencode(".jpg", np.full((20, 30, 3), 90, dtype=np.uint8))
    data, thumbnail = encoded.tobytes(), encoded.tobytes()
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = data[:2] + segment + data[2:]
    assert not is_truncated(whole)
    assert is_truncated(whole[:-30])


@pytest.mark.parametrize("flag", ["gray", "alpha"])
def test_other_channels_become_rgb(tmp_path: Path, flag: str) -> None:
    pixels = np.full((8, 9) if flag == "gray" else (8, 9, 4), 77, dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    image = read_image(tmp_path / "a.png")
    assert image.shape == (8, 9, 3) and (image == 77).all()


def test_folder_in_place_of_an_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image cannot be read"):
        read_image(tmp_path)
    with pytest.raises(UserError, match="image is missing"):
        read_image(tmp_path / "none.jpg")


# Bad surroundings ------------------------------------------------------------------------------------------


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_arm(tmp_path / "arm")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot keep the crop cache here"):
        open_arm(root, tmp_path / "file")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module.cache.os, "fsync", full)
    with pytest.raises(UserError, match="cannot keep the crop cache here: No space left"):
        open_arm(root, tmp_path / "cache")
    assert builds(tmp_path / "cache") == []


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_arm(tmp_path / "nowhere", tmp_path / "cache")
    root = write_arm(tmp_path / "arm", 1)
    (root / "annotations.json").unlink()
    with pytest.raises(UserError, match=r"annotations\.json: annotation file is missing"):
        open_arm(root, tmp_path / "cache")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "annotations.json").write_text("{}")
    with pytest.raises(UserError, match="images: image folder cannot be read"):
        open_arm(tmp_path / "bare", tmp_path / "cache")


def test_impossible_sizes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="input_size"):
        open_arm(tmp_path, tmp_path / "cache", input_size=(0, 3))


@pytest.mark.parametrize("name", ["mpii", "coco"])
def test_real_files(tmp_path: Path, shared_data: Path, name: str) -> None:
    cache = open_cache(load_spec(name), shared_data / name, input_size=(64, 48), directory=tmp_path)
    assert len(cache) == {"mpii": 5, "coco": 12}[name]
    assert (cache.crops.reshape(len(cache), -1).std(axis=1) > 5).all()


def test_a_prediction_sees_the_very_pixels_that_an_evaluation_sees(home: Path) -> None:
    spec = load_spec("arm")
    root = home / "data" / "arm"
    cache = open_cache(spec, root, input_size=(48, 32), directory=home / "cache" / "crops")
    records, _ = read_records(spec, root, on_bad="raise")
    batch = next(iter(Batches(cache, np.arange(6), batch_size=6, seed=0, shuffle=False)))
    for position in range(6):
        pixels, matrix = network_input(read_image(records[position].image), records[position].box, (48, 32))
        assert torch.equal(normalised(pixels[None])[0], batch.images[position])
        found = apply_affine(records[position].keypoints, matrix)
        assert np.allclose(found, batch.keypoints[position].numpy(), atol=1e-4)
