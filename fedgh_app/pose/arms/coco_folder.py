"""Folders as labs have them, `images/` beside COCO-keypoint `annotations.json`, written atomically."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgh_app.errors import UserError

ANNOTATIONS = "annotations.json"
IMAGES = "images"
KEYPOINTS = ("shoulder", "elbow", "wrist")
SKELETON = ((0, 1), (1, 2))


def is_written(root: Path, made_by: Mapping[str, Any]) -> bool:
    """Whether `root` already holds the data set that `made_by` describes.

    False means that `root` may be written: it is missing, empty, or made by the same program with other
    settings. A folder that holds anything else raises UserError, so nobody's own data are overwritten.
    """
    if not root.exists():
        return False
    if not root.is_dir():
        raise UserError(f"{root}: is a file; expected a folder for the data set")
    if not any(root.iterdir()):
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
    return found == dict(made_by) and names <= there


def write_annotations(
    folder: Path,
    *,
    info: Mapping[str, Any],
    licence: Mapping[str, Any],
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
) -> None:
    """Write `annotations.json` of single arms; COCO counts the keypoints of a skeleton from 1."""
    skeleton = [[a + 1, b + 1] for a, b in SKELETON]
    category = {"id": 1, "name": "arm", "supercategory": "person", "keypoints": list(KEYPOINTS), "skeleton": skeleton}
    content = {
        "info": info,
        "licenses": [{"id": 1, **licence}],
        "categories": [category],
        "images": images,
        "annotations": annotations,
    }
    (folder / ANNOTATIONS).write_text(json.dumps(content))


def annotation(number: int, keypoints: Sequence[float], bbox: Sequence[float], area: float) -> dict[str, Any]:
    """The annotation of the one arm in image `number`; `keypoints` are x, y, visibility of each in turn."""
    ids = {"id": number, "image_id": number, "category_id": 1}
    return {**ids, "keypoints": keypoints, "num_keypoints": len(KEYPOINTS), "bbox": bbox, "area": area, "iscrowd": 0}
