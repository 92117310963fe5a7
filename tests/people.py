"""A small data set of whole people, in the form of Leeds Sports Pose Extended, for tests of several sets at once."""

from pathlib import Path

import cv2
import numpy as np
import scipy.io


def write_lspet(root: Path, count: int = 40, size: int = 96) -> Path:
    """``count`` images of ``size`` pixels a side with a person of 14 joints each, at random places."""
    generator = np.random.default_rng(0)
    joints = np.ones((14, 3, count))
    joints[:, :2] = generator.uniform(0.1 * size, 0.9 * size, (14, 2, count))
    (root / "images").mkdir(parents=True)
    for person in range(count):
        image = np.full((size, size, 3), 90, dtype=np.uint8)
        for joint, (x, y, _) in enumerate(joints[:, :, person]):
            cv2.circle(image, (int(x), int(y)), 4, (18 * joint, 255 - 18 * joint, 200), -1)
        assert cv2.imwrite(str(root / "images" / f"im{person + 1:05d}.jpg"), image)
    scipy.io.savemat(root / "joints.mat", {"joints": joints})
    return root
