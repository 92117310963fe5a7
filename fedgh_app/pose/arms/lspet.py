"""Real single arms cut from Leeds Sports Pose Extended (Johnson and Everingham, CVPR 2011), by direction.

Each arm whose shoulder, elbow and wrist are all annotated becomes one image: a square patch with the arm in
its middle, clipped where the photograph ends, so that no pixel is invented. Left arms are not mirrored: what
a keypoint is called does not depend on the side, and with the mirror the directions would change sides. The
direction in which the arm points, from shoulder to wrist, divides the set into four sites whose gradients
conflict.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgh_app.errors import UserError
from fedgh_app.pose.arms.coco_folder import IMAGES, annotation, is_written, write_annotations
from fedgh_app.pose.arms.generated import write_jpeg
from fedgh_app.pose.readers.intake import read_arrays
from fedgh_app.vision.files import staged
from fedgh_app.vision.images import read_image

Floats = NDArray[np.float64]

# Rows of joints.mat: shoulder, elbow, wrist.
SIDES = {"right": (8, 7, 6), "left": (9, 10, 11)}
VERSION = 1  # raise it when the patches or the labels change
SHORTEST = 20.0  # px, shoulder-elbow-wrist; people are about 150 px tall, shorter arms cannot be seen
CONTEXT = 3.0  # side of the patch over the joints' longest extent: room for crops that turn, grow and shift
SMALLEST = 64  # px, least side of a patch
JPEG_QUALITY = 95
OBTAIN = "get LSPET (hr-lspet or lspet_dataset.zip, academic use) from http://sam.johnson.io/research/lspet.html"


@dataclass(frozen=True)
class Arm:
    """One arm of one photograph; `joints` (3, 2): shoulder, elbow, wrist in photograph pixels."""

    photograph: str
    side: str
    joints: Floats


def cut(lspet_root: Path, root: Path, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """Write the arms of `lspet_root` (`joints.mat`, `images/`) as a data set under `root` and return `root`.

    At once if the same cut is there already. `progress` is called with (photographs done, in all).
    """
    source = lspet_root / "joints.mat"
    if not source.is_file():
        raise UserError(f"{source}: file is missing; {OBTAIN}")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    made_by = {"program": "fedgh data lspet-arm", "version": VERSION, "joints": digest}
    if is_written(root, made_by):
        return root
    joints = read_arrays(source, ["joints"]).get("joints")
    if joints is None or joints.ndim != 3 or joints.shape[:2] != (14, 3):
        found = "no variable joints" if joints is None else f"shape {joints.shape}"
        raise UserError(f"{source}: {found}; expected joints of shape (14, 3, N)")
    total = joints.shape[2]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with staged(root) as stage:
        (stage / IMAGES).mkdir()
        for number in range(total):
            name = f"im{number + 1:05d}.jpg"
            arms = list(arms_of(name, joints[:, :, number]))
            if arms:
                _cut_photograph(lspet_root / "images" / name, arms, stage / IMAGES, images, annotations)
            if progress is not None:
                progress(number + 1, total)
        if not annotations:
            raise UserError(f"{source}: no arm with all joints visible and at least {SHORTEST:g} px long")
        write_annotations(
            stage,
            info={
                "description": "Single arms cut from Leeds Sports Pose Extended",
                "version": str(VERSION),
                "url": "http://sam.johnson.io/research/lspet.html",
                "contributor": "Johnson and Everingham, CVPR 2011; cut by fedgh data lspet-arm",
                "made_by": made_by,
            },
            licence={"name": "academic use", "url": "http://sam.johnson.io/research/lspet.html"},
            images=images,
            annotations=annotations,
        )
    return root


def arms_of(photograph: str, joints: Floats) -> Iterator[Arm]:
    """The arms of one person, `joints` (14, 3) x, y, visible, that have all joints and are long enough."""
    for side, rows in SIDES.items():
        points, visible = joints[list(rows), :2].astype(float), joints[list(rows), 2] > 0
        if not visible.all() or not np.isfinite(points).all():
            continue
        length = np.linalg.norm(np.diff(points, axis=0), axis=1).sum()
        if length >= SHORTEST:
            yield Arm(photograph, side, points)


def direction(shoulder: Floats, wrist: Floats) -> str:
    """Where the arm points: right, left, up or down in the image, whose y axis points down.

    The larger component decides; on a diagonal the vertical one.
    """
    x, y = wrist - shoulder
    if abs(x) > abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"


def _cut_photograph(
    path: Path, arms: list[Arm], folder: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> None:
    """Write a patch for each arm of a photograph and append its entries."""
    if not path.is_file():
        raise UserError(f"{path}: photograph is missing; {OBTAIN}")
    photograph = read_image(path)
    height, width = photograph.shape[:2]
    for arm in arms:
        if (arm.joints < 0).any() or (arm.joints > [width - 1, height - 1]).any():
            continue  # a joint guessed outside of the photograph
        left, top, right, bottom = _patch(arm.joints, width, height)
        number = len(images) + 1
        name = f"{path.stem}_{arm.side}.jpg"
        write_jpeg(folder / name, photograph[top:bottom, left:right], JPEG_QUALITY)
        images.append(
            {
                "id": number,
                "file_name": name,
                "width": right - left,
                "height": bottom - top,
                "license": 1,
                "source": arm.photograph,
                "direction": direction(arm.joints[0], arm.joints[2]),
                "side": arm.side,
            }
        )
        annotations.append(_annotation(number, arm.joints - [left, top]))


def _patch(joints: Floats, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the square around the joints, clipped to the photograph."""
    low, high = joints.min(axis=0), joints.max(axis=0)
    side = max(CONTEXT * float((high - low).max()), SMALLEST)
    corner = np.floor((low + high) / 2 - side / 2).astype(int)
    far = corner + int(np.ceil(side))
    left, top = np.maximum(corner, 0).tolist()
    right, bottom = np.minimum(far, [width, height]).tolist()
    return left, top, right, bottom


def _annotation(number: int, joints: Floats) -> dict[str, Any]:
    """The COCO annotation. The box is the joints' own extent: its longest side is PCK's reference length.

    A straight arm along an axis has no extent across it, and a box needs an area: 1 px is the least side.
    """
    low, extent = joints.min(axis=0), np.maximum(np.ptp(joints, axis=0), 1.0)
    keypoints: list[float] = []
    for x, y in joints:
        keypoints += [round(float(x), 3), round(float(y), 3), 2]
    box = [round(float(value), 3) for value in (*low, *extent)]
    return annotation(number, keypoints, box, round(float(extent.prod()), 3))
