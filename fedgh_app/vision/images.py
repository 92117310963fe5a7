"""Image files decoded by OpenCV, which is lenient: what it would decode in part is refused here."""

import os
from pathlib import Path

import cv2
import numpy as np

from fedgh_app.errors import UserError

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"


def read_image(path: Path) -> np.ndarray:
    """The image (H, W, 3) uint8 RGB, turned upright as its EXIF says; else a `UserError` naming the file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: image is missing") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: image cannot be read: {reason}") from error
    if not data:
        raise UserError(f"{path}: image file is empty")
    if is_truncated(data):
        raise UserError(f"{path}: image is truncated ({len(data)} bytes, its end is missing)")
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            most = os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"]
            raise UserError(f"{path}: image is too large, expected at most {most} pixels") from None
        image = None
    if image is None:
        raise UserError(f"{path}: not an image that OpenCV can decode")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image (H, W, 3) uint8 BGR in the format of the path's suffix; a `UserError` names the file."""
    done, data = cv2.imencode(path.suffix.lower(), image)  # cv2.imwrite would only return False, for whatever reason
    if not done:
        raise UserError(f"{path}: OpenCV cannot encode a picture of {image.shape[1]} x {image.shape[0]} pixels")
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise UserError(f"{path}: picture cannot be written: {error.strerror or error}") from error


def is_truncated(data: bytes) -> bool:
    """Whether a JPEG, PNG or WebP file stops before its own end.

    OpenCV fills what is missing with grey and at most prints a warning, so a half-copied data set would train in
    silence. A JPEG's end marker cannot occur inside its compressed scan (0xFF is followed by a zero there), but an
    embedded thumbnail has one of its own: hence the search starts at the main image's first scan.
    """
    if data.startswith(JPEG_START):
        scan = _first_scan(data)
        return scan is None or data.find(JPEG_END, scan) < 0
    if data.startswith(PNG_START):
        return data.rfind(PNG_END) < 0
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    return False


def _first_scan(data: bytes) -> int | None:
    """Offset of a JPEG's first scan, found by walking over its segments; None where there is none."""
    position = len(JPEG_START)
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position : position + 2]
        if marker == JPEG_SCAN:
            return position
        if data[position + 1] in (0xFF, 0x01) or 0xD0 <= data[position + 1] <= 0xD7:
            # Fill bytes, and the markers that carry no length.
            position += 1 if data[position + 1] == 0xFF else 2
            continue
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None
