"""Folders as labs have them, `images/` beside COCO-keypoint `annotations.json`, written atomically."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgh_app.errors import UserError

ANNOTATIONS = "annotations.json"
IMAGES = "images"


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
    category: str,
    keypoints: Sequence[str],
    skeleton: Sequence[tuple[int, int]],
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
) -> None:
    """Write `annotations.json`. `skeleton` counts keypoints from 0 here, from 1 in the file (COCO's way)."""
    content = {
        "info": dict(info),
        "licenses": [{"id": 1, **licence}],
        "categories": [
            {
                "id": 1,
                "name": category,
                "supercategory": "person",
                "keypoints": list(keypoints),
                "skeleton": [[a + 1, b + 1] for a, b in skeleton],
            }
        ],
        "images": list(images),
        "annotations": list(annotations),
    }
    (folder / ANNOTATIONS).write_text(json.dumps(content))
