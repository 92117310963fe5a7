"""Affine maps between image, crop and network input, by one convention: pixel centres lie at integers.

A crop of width W covers x from -0.5 to W - 0.5, and its centre is (W - 1) / 2. The same matrix moves pixels
(through `cv2.warpAffine`) and keypoints (through `apply_affine`), so the two cannot drift apart.
"""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

# A box is enlarged by this before it is cropped, as in Simple Baselines (Xiao et al., ECCV 2018).
PADDING = 1.25
# Black where an image ends: a repeated or mirrored border could show a second wrist.
WARP: dict[str, Any] = {"flags": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_CONSTANT, "borderValue": (0, 0, 0)}


def similarity_matrix(
    source: np.ndarray,
    target: np.ndarray,
    *,
    magnification: np.ndarray | float = 1.0,
    rotation_deg: np.ndarray | float = 0.0,
    flip: np.ndarray | bool = False,
) -> np.ndarray:
    """Affine maps (..., 2, 3) that take the points `source` (..., 2) to `target` (..., 2).

    About that point the picture is turned by `rotation_deg` (clockwise as seen, since y points down),
    enlarged by `magnification`, then mirrored left to right where `flip`. All arguments broadcast.
    """
    angle = np.deg2rad(np.asarray(rotation_deg, dtype=np.float64))
    factor = np.asarray(magnification, dtype=np.float64)
    mirror = np.where(flip, -1.0, 1.0)
    cos, sin = factor * np.cos(angle), factor * np.sin(angle)
    rows = np.broadcast_arrays(mirror * cos, -mirror * sin, sin, cos)
    linear = np.stack(rows, axis=-1).reshape(*rows[0].shape, 2, 2)
    source, target = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    offset = target - (linear @ source[..., None])[..., 0]
    linear = np.broadcast_to(linear, (*offset.shape[:-1], 2, 2))
    return np.concatenate([linear, offset[..., None]], axis=-1)


def crop_matrix(box: np.ndarray | Sequence[float], size: tuple[int, int], padding: float = PADDING) -> np.ndarray:
    """Affine map (2, 3) from image pixels to a crop of `size` = (width, height) pixels around `box`.

    The box (x, y, width, height) is enlarged by `padding` and then, on one axis, to the crop's aspect ratio,
    so nothing is distorted.
    """
    x, y, box_width, box_height = (float(value) for value in box)
    width, height = size
    magnification = min(width / (padding * box_width), height / (padding * box_height))
    centre, middle = (x + box_width / 2, y + box_height / 2), ((width - 1) / 2, (height - 1) / 2)
    return similarity_matrix(np.array(centre), np.array(middle), magnification=magnification)


def apply_affine(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Map points (..., N, 2) by one matrix (2, 3) or by a batch of them (..., 2, 3); float64."""
    points, matrix = np.asarray(points, dtype=np.float64), np.asarray(matrix, dtype=np.float64)
    if points.ndim == 1:
        return matrix[..., :2] @ points + matrix[..., 2]
    return points @ np.swapaxes(matrix[..., :2], -1, -2) + matrix[..., None, :, 2]


def inside(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which of the points (..., 2) lie in an image of `size` = (height, width)."""
    return np.asarray(((points >= -0.5) & (points <= np.array(size[::-1]) - 0.5)).all(axis=-1))


def invert_affine(matrix: np.ndarray) -> np.ndarray:
    """Inverse of an affine map, (..., 2, 3) float64."""
    matrix = np.asarray(matrix, dtype=np.float64)
    linear = np.linalg.inv(matrix[..., :2])
    return np.concatenate([linear, -(linear @ matrix[..., 2:])], axis=-1)


def magnification(matrix: np.ndarray) -> np.ndarray:
    """How much longer a length becomes under a similarity (..., 2, 3)."""
    return np.sqrt(np.abs(np.linalg.det(np.asarray(matrix, dtype=np.float64)[..., :2])))


def crop_image(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Crop of `size` = (width, height) from an image (H, W, 3) uint8; black where the image ends.

    `cv2.warpAffine` looks at four source pixels however far it shrinks, which turns fine texture into
    noise. So the part that is needed is first shrunk by a whole factor with area averaging; what is left
    for the warp is a factor between 1/2 and 1.
    """
    factor = max(1, math.floor(1 / float(magnification(matrix)) + 1e-9))
    if factor > 1:
        image, shrink = _shrink(image, matrix, size, factor)
        matrix = compose(matrix, invert_affine(shrink))
    return cv2.warpAffine(image, matrix, size, **WARP)


def compose(second: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The affine map that does `first`, then `second`, (..., 2, 3)."""
    linear = second[..., :2] @ first[..., :2]
    return np.concatenate([linear, second[..., :2] @ first[..., 2:] + second[..., 2:]], axis=-1)


def _shrink(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], factor: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of `image` that the crop sees, averaged over factor x factor blocks, and the map to it."""
    width, height = size
    corners = np.array([[-1, -1], [width, -1], [-1, height], [width, height]])
    seen = apply_affine(corners, invert_affine(matrix))
    limit = np.array([image.shape[1], image.shape[0]])
    low = np.clip(np.floor(seen.min(axis=0)).astype(int) - factor, 0, limit - 1)
    high = np.clip(np.ceil(seen.max(axis=0)).astype(int) + factor + 1, low + 1, limit)
    part = image[low[1] : high[1], low[0] : high[0]]
    bottom, right = -part.shape[0] % factor, -part.shape[1] % factor
    if bottom or right:  # whole blocks only: the last one is completed with the black that lies outside
        part = cv2.copyMakeBorder(part, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    small = cv2.resize(part, (part.shape[1] // factor, part.shape[0] // factor), interpolation=cv2.INTER_AREA)
    # Block b covers pixels b * factor to (b + 1) * factor - 1, whose centre is b * factor + (factor - 1) / 2.
    offset = -(low + (factor - 1) / 2) / factor
    return small, np.array([[1 / factor, 0, offset[0]], [0, 1 / factor, offset[1]]])
