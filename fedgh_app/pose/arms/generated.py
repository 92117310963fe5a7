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

import cv2
import numpy as np
from threadpoolctl import threadpool_limits

from fedgh_app.errors import UserError
from fedgh_app.pose.arms.coco_folder import ArmImage, triples, write_folder
from fedgh_app.pose.arms.render import Image, Rendering, render
from fedgh_app.pose.arms.scene import POSTURES, VIEWPOINTS, sample_scene
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
    return write_folder(
        root,
        {"program": program, "version": VERSION, "seed": seed, "count": count, "image_size": size},
        lambda folder: _write_images(folder, count, seed, image_size, workers or usable_cores(), progress),
        info={
            "description": "Generated: one subject, a robot manipulator over the arm, four viewpoints",
            "version": str(VERSION),
            "contributor": program,
        },
        licence={"name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"},
    )


def kind_of(index: int) -> dict[str, str]:
    """Viewpoint, posture and split of image `index`.

    Viewpoints take turns, so any count of images holds them in equal shares; postures alternate within each. Every
    fifth round of both is held out, so the test images are balanced over them.
    """
    split = "test" if index // 8 % 5 == 4 else "train"
    return {"viewpoint": VIEWPOINTS[index % 4], "posture": POSTURES[index // 4 % 2], "split": split}


def draw(index: int, *, seed: int, image_size: tuple[int, int]) -> Rendering:
    """Image `index` of the data set of this seed, with its joints and masks."""
    rng, kind = np.random.default_rng([seed, index]), kind_of(index)
    return render(sample_scene(rng, kind["viewpoint"], kind["posture"], image_size), rng)


def _write_images(
    folder: Path, count: int, seed: int, image_size: tuple[int, int], workers: int, progress: Progress | None
) -> Iterator[ArmImage]:
    write = partial(_write_chunk, folder=folder, seed=seed, image_size=image_size)
    parts = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    done = 0
    for chunk in _in_order(write, parts, workers):
        yield from chunk
        done += len(chunk)
        if progress is not None:
            progress(done, count)


def _in_order(write: Callable[[range], list[ArmImage]], parts: list[range], workers: int) -> Iterator[list[ArmImage]]:
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


def _write_chunk(indices: range, *, folder: Path, seed: int, image_size: tuple[int, int]) -> list[ArmImage]:
    written = []
    for index in indices:
        rendering = draw(index, seed=seed, image_size=image_size)
        name = f"{index + 1:06d}.jpg"
        write_jpeg(folder / name, rendering.image, JPEG_QUALITY)
        keypoints = triples(rendering.joints, (2 - rendering.hidden).tolist(), decimals=2)
        # The box holds the whole arm with its hand, also where the robot hides it.
        box, area = cv2.boundingRect(rendering.limb.astype(np.uint8)), int(rendering.limb.sum())
        written.append(ArmImage(name, image_size, keypoints, box, area, kind_of(index)))
    return written


def write_jpeg(path: Path, image: Image, quality: int) -> None:
    """Write an RGB image (h, w, 3); an error names the file (OpenCV only returns False)."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise OSError(f"{path}: OpenCV could not encode the image")
    path.write_bytes(data.tobytes())
