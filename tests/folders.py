"""Small data sets on disk for the tests of the data path."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np


def write_image(path: Path, width: int = 40, height: int = 30, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), pixels)


def arm_annotations(count: int) -> dict[str, Any]:
    """`count` images of 40 x 30 with one arm each: shoulder (10, 8), elbow (20, 15), wrist (29.5, 22)."""
    return {
        "images": [
            {"id": i, "file_name": f"{i:03d}.jpg", "width": 40, "height": 30, "viewpoint": f"v{i % 2}"}
            for i in range(count)
        ],
        "annotations": [
            {
                "id": 100 + i,
                "image_id": i,
                "category_id": 1,
                "keypoints": [10, 8, 2, 20, 15, 2, 29.5, 22, 1],
                "num_keypoints": 3,
                "bbox": [8, 6, 24, 18],
            }
            for i in range(count)
        ],
        "categories": [{"id": 1, "name": "arm", "keypoints": ["shoulder", "elbow", "wrist"]}],
    }


def write_arm(root: Path, count: int = 4, annotations: Any = None) -> Path:
    """A whole `arm` data set; `annotations` replaces the file's content."""
    for i in range(count):
        write_image(root / "images" / f"{i:03d}.jpg", seed=i)
    root.mkdir(parents=True, exist_ok=True)
    content = arm_annotations(count) if annotations is None else annotations
    (root / "annotations.json").write_text(json.dumps(content))
    return root


def mpii_person(**changes: Any) -> dict[str, Any]:
    joints = [[float(10 + joint), float(20 + joint)] for joint in range(16)]
    person = {
        "image": "000.jpg",
        "joints": joints,
        "joints_vis": [1] * 16,
        "center": [21.0, 31.0],
        "scale": 0.5,
    }
    return person | changes
