"""Folders as labs have them, `images/` beside COCO-keypoint `annotations.json`, written atomically."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedgh_app.pose.errors import UserError

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
    found: Mapping[str, Any] = {}
    content: Any = None
    if (root / ANNOTATIONS).is_file():
        try:
            content = json.loads((root / ANNOTATIONS).read_text())
            found = content["info"]["made_by"]
        except (ValueError, KeyError, TypeError, OSError):
            found = {}
    if not isinstance(found, Mapping) or found.get("program") != made_by["program"]:
        raise UserError(f"{root}: holds files that {made_by['program']} did not write; give an empty or new folder")
    names = {entry["file_name"] for entry in content["images"]}
    there = {entry.name for entry in os.scandir(root / IMAGES)} if (root / IMAGES).is_dir() else set()
    return dict(found) == dict(made_by) and names <= there


@contextmanager
def staged(root: Path) -> Iterator[Path]:
    """A temporary sibling of `root` (with `images/`); takes its place when the block ends well."""
    root = root.absolute()
    root.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        (stage / IMAGES).mkdir()
        yield stage
        stage.chmod(0o755)  # mkdtemp makes it private
        if root.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{root.name}-old-", dir=root.parent))
            root.replace(old)  # rename(2) may replace an empty folder
            stage.replace(root)
            shutil.rmtree(old)
        else:
            stage.replace(root)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


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
