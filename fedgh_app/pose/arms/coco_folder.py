"""Folders as labs have them, `images/` beside COCO-keypoint `annotations.json`, written atomically."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedgh_app.errors import UserError
from fedgh_app.vision.files import staged

Floats = NDArray[np.float64]

ANNOTATIONS = "annotations.json"
IMAGES = "images"
KEYPOINTS = ("shoulder", "elbow", "wrist")
SKELETON = ((1, 2), (2, 3))  # COCO counts from 1


@dataclass(frozen=True)
class ArmImage:
    """An image of `size` (width, height) px, and its arm: `keypoints` are x, y, visibility of each in turn."""

    file_name: str
    size: tuple[int, int]
    keypoints: Sequence[float]
    box: Sequence[float]
    area: float
    attributes: Mapping[str, str]


def triples(joints: Floats, visibility: Iterable[int], decimals: int) -> list[float]:
    """Joints (3, 2) as `ArmImage.keypoints`, which are rounded."""
    rows = zip(joints.tolist(), visibility, strict=True)
    return [value for (x, y), flag in rows for value in (round(x, decimals), round(y, decimals), flag)]


def write_folder(
    root: Path,
    made_by: Mapping[str, object],
    write_images: Callable[[Path], Iterable[ArmImage]],
    *,
    info: Mapping[str, str],
    licence: Mapping[str, str],
) -> Path:
    """Write the data set of single arms that `made_by` describes under `root`, unless it is there, and return `root`.

    `write_images` writes the images into the folder that it is given.
    """
    if is_written(root, made_by):
        return root
    category = {"id": 1, "name": "arm", "supercategory": "person", "keypoints": KEYPOINTS, "skeleton": SKELETON}
    images, annotations = [], []
    with staged(root) as stage:
        (stage / IMAGES).mkdir()
        for number, arm in enumerate(write_images(stage / IMAGES), start=1):
            size = {"width": arm.size[0], "height": arm.size[1]}
            images.append({"id": number, "file_name": arm.file_name, **size, "license": 1, **arm.attributes})
            keypoints = {"keypoints": arm.keypoints, "num_keypoints": len(KEYPOINTS)}
            ids = {"id": number, "image_id": number, "category_id": 1}
            annotations.append({**ids, **keypoints, "bbox": arm.box, "area": arm.area, "iscrowd": 0})
        content = {
            "info": {**info, "made_by": made_by},
            "licenses": [{"id": 1, **licence}],
            "categories": [category],
            "images": images,
            "annotations": annotations,
        }
        (stage / ANNOTATIONS).write_text(json.dumps(content))
    return root


def is_written(root: Path, made_by: Mapping[str, object]) -> bool:
    """Whether `root` already holds the data set that `made_by` describes.

    False means that `root` may be written: it is missing, empty, or made by the same program with other
    settings. A folder that holds anything else raises UserError, so nobody's own data are overwritten.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: is a file; expected a folder for the data set")
    if not root.exists() or not any(root.iterdir()):
        return False
    try:
        content = json.loads((root / ANNOTATIONS).read_bytes())
        found = dict(content["info"]["made_by"])
        names = {str(entry["file_name"]) for entry in content["images"]}
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        found, names = {}, set()
    if found.get("program") != made_by["program"]:
        raise UserError(f"{root}: holds files that {made_by['program']} did not write; give an empty or new folder")
    there = {entry.name for entry in os.scandir(root / IMAGES)} if (root / IMAGES).is_dir() else set()
    return found == made_by and names <= there
