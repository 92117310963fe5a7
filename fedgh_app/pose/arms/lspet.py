"""Real single arms cut from Leeds Sports Pose Extended (Johnson and Everingham, CVPR 2011), by direction.

Each arm whose shoulder, elbow and wrist are all annotated becomes one image: a square patch with the arm in its middle,
clipped where the photograph ends, so that no pixel is invented. Left arms are not mirrored: what a keypoint is called
does not depend on the side, and with the mirror the directions would change sides. The direction in which the arm
points, from shoulder to wrist, divides the set into four sites whose gradients conflict.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedgh_app.errors import UserError
from fedgh_app.pose.arms.coco_folder import IMAGES, ArmImage, Floats, triples, write_folder
from fedgh_app.pose.arms.generated import Progress, write_jpeg
from fedgh_app.pose.readers.intake import read_arrays
from fedgh_app.vision.images import read_image

# Rows of joints.mat: shoulder, elbow, wrist.
SIDES = {"right": (8, 7, 6), "left": (9, 10, 11)}
VERSION = 1  # raise it when the patches or the labels change
SHORTEST = 20.0  # px, shoulder-elbow-wrist; people are about 150 px tall, shorter arms cannot be seen
CONTEXT = 3.0  # side of the patch over the joints' longest extent: room for crops that turn, grow and shift
SMALLEST = 64  # px, least side of a patch
JPEG_QUALITY = 95
URL = "http://sam.johnson.io/research/lspet.html"
OBTAIN = f"get LSPET (hr-lspet or lspet_dataset.zip, academic use) from {URL}"


def cut(lspet_root: Path, root: Path, *, progress: Progress | None = None) -> Path:
    """Write the arms of `lspet_root` (`joints.mat`, `images/`) as a data set under `root` and return `root`.

    At once if the same cut is there already. `progress` is called with (photographs done, in all).
    """
    source = lspet_root / "joints.mat"
    if not source.is_file():
        raise UserError(f"{source}: file is missing; {OBTAIN}")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return write_folder(
        root,
        {"program": "fedgh data lspet-arm", "version": VERSION, "joints": digest},
        lambda folder: _write_images(source, folder, progress),
        info={
            "description": "Single arms cut from Leeds Sports Pose Extended",
            "version": str(VERSION),
            "url": URL,
            "contributor": "Johnson and Everingham, CVPR 2011; cut by fedgh data lspet-arm",
        },
        licence={"name": "academic use", "url": URL},
    )


def _write_images(source: Path, folder: Path, progress: Progress | None) -> Iterator[ArmImage]:
    joints = read_arrays(source, ["joints"]).get("joints")
    if joints is None or joints.ndim != 3 or joints.shape[:2] != (14, 3):
        found = "no variable joints" if joints is None else f"shape {joints.shape}"
        raise UserError(f"{source}: {found}; expected joints of shape (14, 3, N)")
    total, empty = joints.shape[2], True
    for number in range(1, total + 1):
        for arm in _cut_photograph(source.parent / IMAGES / f"im{number:05d}.jpg", joints[:, :, number - 1], folder):
            yield arm
            empty = False
        if progress is not None:
            progress(number, total)
    if empty:
        raise UserError(f"{source}: no arm with all joints visible and at least {SHORTEST:g} px long")


def arms_of(joints: Floats) -> dict[str, Floats]:
    """Shoulder, elbow and wrist (3, 2), by side, of a person, `joints` (14, 3) x, y, visible.

    Of those arms that have all joints and are long enough.
    """
    arms = {}
    for side, rows in SIDES.items():
        points, visible = joints[list(rows), :2].astype(float), joints[list(rows), 2] > 0
        whole = visible.all() and np.isfinite(points).all()
        if whole and np.linalg.norm(np.diff(points, axis=0), axis=1).sum() >= SHORTEST:
            arms[side] = points
    return arms


def direction(shoulder: Floats, wrist: Floats) -> str:
    """Where the arm points in the image: right, left, up or down; the larger component decides, or the vertical."""
    x, y = wrist - shoulder
    if abs(x) > abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"


def _cut_photograph(path: Path, joints: Floats, folder: Path) -> Iterator[ArmImage]:
    """Write a patch for each arm of a photograph of a person.

    The box is the joints' own extent: its longest side is PCK's reference length. A straight arm along an axis has no
    extent across it, and a box needs an area: 1 px is the least side.
    """
    arms = arms_of(joints)
    if not arms:
        return
    if not path.is_file():
        raise UserError(f"{path}: photograph is missing; {OBTAIN}")
    photograph = read_image(path)
    height, width = photograph.shape[:2]
    for side, points in arms.items():
        if (points < 0).any() or (points > [width - 1, height - 1]).any():
            continue  # a joint guessed outside of the photograph
        left, top, right, bottom = _patch(points, width, height)
        name = f"{path.stem}_{side}.jpg"
        write_jpeg(folder / name, photograph[top:bottom, left:right], JPEG_QUALITY)
        kind = {"source": path.name, "direction": direction(points[0], points[2]), "side": side}
        points = points - [left, top]
        extent = np.maximum(np.ptp(points, axis=0), 1.0)
        box = [round(value, 3) for value in (*points.min(axis=0).tolist(), *extent.tolist())]
        size, area = (right - left, bottom - top), round(float(extent.prod()), 3)
        yield ArmImage(name, size, triples(points, (2, 2, 2), decimals=3), box, area, kind)


def _patch(joints: Floats, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the square around the joints, clipped to the photograph."""
    low, high = joints.min(axis=0), joints.max(axis=0)
    side = max(CONTEXT * float((high - low).max()), SMALLEST)
    corner = np.floor((low + high) / 2 - side / 2).astype(int)
    far = corner + int(np.ceil(side))
    left, top = np.maximum(corner, 0).tolist()
    right, bottom = np.minimum(far, [width, height]).tolist()
    return left, top, right, bottom
