"""The generated arm data: a stand-in, in shape and size, for the FedGH paper's arm images (not public).

2,060 images of one subject whose right arm a robot manipulator reaches over, seen by four fixed cameras (515
images each), arm upright or extended. Written as ordinary files and COCO-keypoint JSON: what a lab would
bring for its own arm.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from threadpoolctl import threadpool_limits

from fedgh_app.errors import UserError
from fedgh_app.pose.arms.coco_folder import IMAGES, annotation, image, is_written, write_annotations
from fedgh_app.pose.arms.render import Image, Rendering, render
from fedgh_app.pose.arms.scene import POSTURES, VIEWPOINTS, sample_scene
from fedgh_app.vision.files import staged
from fedgh_app.vision.threads import usable_cores

VERSION = 1  # raise it when the pictures or the labels change
JPEG_QUALITY = 92
CHUNK = 20  # images a worker draws before it reports

Progress = Callable[[int, int], None]


def generate(
    root: Path,
    *,
    count: int = 2060,
    seed: int = 0,
    image_size: tuple[int, int] = (256, 256),
    progress: Progress | None = None,
    workers: int | None = None,
) -> Path:
    """Write the arm data set under `root` and return `root`; at once if the same data are there already.

    Image i is a function of (seed, i, image_size) alone, whatever `count` and `workers` are. `image_size` is
    (width, height) px; `progress` is called with (images done, images in all); `workers` processes draw
    (None: one per CPU that this process may use).
    """
    if count < 1:
        raise UserError(f"count: {count}; expected at least 1 image")
    if seed < 0:
        raise UserError(f"seed: {seed}; expected 0 or more")
    if min(image_size) < 32:
        raise UserError(f"image_size: {image_size[0]}x{image_size[1]}; expected at least 32x32 px")
    program, size = "fedgh data arm", list(image_size)
    made_by = {"program": program, "version": VERSION, "seed": seed, "count": count, "image_size": size}
    if is_written(root, made_by):
        return root
    with staged(root) as stage:
        (stage / IMAGES).mkdir()
        entries: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for chunk in _chunks(stage / IMAGES, count, seed, image_size, workers or usable_cores()):
            entries += chunk
            if progress is not None:
                progress(len(entries), count)
        write_annotations(
            stage,
            info={
                "description": "Generated: one subject, a robot manipulator over the arm, four viewpoints",
                "version": str(VERSION),
                "contributor": program,
                "made_by": made_by,
            },
            licence={"name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"},
            images=[entry for entry, _ in entries],
            annotations=[entry for _, entry in entries],
        )
    return root


def viewpoint_of(index: int) -> str:
    """Viewpoints take turns, so any count of images holds them in equal shares."""
    return VIEWPOINTS[index % 4]


def posture_of(index: int) -> str:
    """Postures alternate within each viewpoint."""
    return POSTURES[index // 4 % 2]


def split_of(index: int) -> str:
    """Every fifth round of viewpoints and postures is held out, so the test images are balanced over both."""
    return "test" if index // 8 % 5 == 4 else "train"


def draw(index: int, *, seed: int, image_size: tuple[int, int]) -> Rendering:
    """Image `index` of the data set of this seed, with its joints and masks."""
    rng = np.random.default_rng([seed, index])
    return render(sample_scene(rng, viewpoint_of(index), posture_of(index), image_size), rng)


def _chunks(
    folder: Path, count: int, seed: int, image_size: tuple[int, int], workers: int
) -> Iterator[list[tuple[dict[str, Any], dict[str, Any]]]]:
    parts = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    write = partial(_write_images, folder=folder, seed=seed, image_size=image_size)
    workers = min(workers, len(parts) // 2)  # starting a process costs about as much as one chunk
    if workers < 2:
        with threadpool_limits(1):
            yield from map(write, parts)
        return
    # Not fork: the caller may have threads (torch, Flower) whose locks a forked child would inherit.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_single_thread) as pool:
        yield from pool.map(write, parts)


def _single_thread() -> None:
    cv2.setNumThreads(1)
    threadpool_limits(1)


def _write_images(
    indices: range, *, folder: Path, seed: int, image_size: tuple[int, int]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    entries = []
    for index in indices:
        rendering = draw(index, seed=seed, image_size=image_size)
        name = f"{index + 1:06d}.jpg"
        write_jpeg(folder / name, rendering.image, JPEG_QUALITY)
        kind = {"viewpoint": viewpoint_of(index), "posture": posture_of(index), "split": split_of(index)}
        entries.append((image(index + 1, name, image_size, **kind), _annotation(index, rendering)))
    return entries


def _annotation(index: int, rendering: Rendering) -> dict[str, Any]:
    """The COCO annotation; the box holds the whole arm with its hand, also where the robot hides it."""
    rows, columns = np.flatnonzero(rendering.limb.any(1)), np.flatnonzero(rendering.limb.any(0))
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    keypoints: list[float] = []
    for (x, y), hidden in zip(rendering.joints, rendering.hidden, strict=True):
        keypoints += [round(float(x), 2), round(float(y), 2), 1 if hidden else 2]
    return annotation(index + 1, keypoints, [int(side) for side in box], int(rendering.limb.sum()))


def write_jpeg(path: Path, image: Image, quality: int) -> None:
    """Write an RGB image (h, w, 3); an error names the file (OpenCV only returns False)."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise OSError(f"{path}: OpenCV could not encode the image")
    path.write_bytes(data.tobytes())
