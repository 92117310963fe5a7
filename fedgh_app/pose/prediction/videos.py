"""Videos frame by frame through OpenCV's FFmpeg, which stops at damage as if the video ended there: refused here."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from fedgh_app.errors import UserError

# What FFmpeg finds wrong with a file is told in one line of ours; it reads this when it opens the first one.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

CODEC = "mp4v"
CODEC_NAME = "MPEG-4 Part 2 (mp4v)"  # the one codec for mp4 that every build of OpenCV can write
USUAL_RATE = 25.0  # frames a second where a file states none
# Fewer frames than stated by this many are no damage: cameras and cutters hide some at either end.
SLACK = 2


@dataclass(frozen=True)
class Video:
    """What a video file states: `frames` (0 for none stated), `rate` in frames a second, `size` (width, height)."""

    path: Path
    frames: int
    rate: float
    size: tuple[int, int]


def open_video(path: Path) -> Video:
    """What the file says of itself; a `UserError` where it is no video, or one whose index is cut off."""
    with _reading(path) as capture:
        rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        size = (int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))
    if min(size) < 1:
        raise _unreadable(path)
    if size[0] * size[1] > int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"]):
        raise UserError(f"{path}: frames of {size[0]}x{size[1]} are too large")
    frames = int(count) if 0 < count < 2**31 else 0
    return Video(path, frames, rate if math.isfinite(rate) and rate > 0 else USUAL_RATE, size)


def frames_of(video: Video) -> Iterator[np.ndarray]:
    """The frames (H, W, 3) uint8 RGB, upright, one at a time.

    Raises UserError where the video breaks off before its stated end, once the frames before that have been given.
    """
    count = 0
    with _reading(video.path) as capture:
        while True:
            there, frame = capture.read()
            if not there:
                break
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            count += 1
    if count == 0:
        raise UserError(f"{video.path}: no frame of this video can be decoded")
    if count < video.frames - SLACK:
        raise UserError(f"{video.path}: video breaks off at frame {count} of {video.frames}")


@contextmanager
def writing(path: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that appends a frame (H, W, 3) uint8 BGR to the mp4 at `path`; all frames have one size.

    Odd sides lose a row or column, which MPEG-4 cannot hold. Raises OSError where the file cannot be written whole:
    OpenCV itself says nothing of a full disk.
    """
    writer: cv2.VideoWriter | None = None
    size, count = (0, 0), 0

    def write(frame: np.ndarray) -> None:
        nonlocal writer, size, count
        here = (frame.shape[1], frame.shape[0])
        if writer is None:
            size = here
            with _silence():
                writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*CODEC), rate, size)
            if not writer.isOpened():
                raise OSError(f"OpenCV cannot write {CODEC_NAME} of {size[0]}x{size[1]} at {rate:g} frames a second")
        if here != size:
            raise UserError(
                f"{path.name}: frame {count} is {here[0]}x{here[1]}, expected {size[0]}x{size[1]} as before"
            )
        writer.write(frame)
        count += 1

    try:
        yield write
    finally:
        if writer is not None:
            writer.release()
    with _reading(path) as capture:
        written = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if written != count:
        raise OSError(f"{written} of {count} frames were written; is the disk full?")


@contextmanager
def _reading(path: Path) -> Iterator[cv2.VideoCapture]:
    if not path.is_file():
        raise UserError(f"{path}: video is missing")
    with _silence():
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise _unreadable(path)
        yield capture
    finally:
        capture.release()


def _unreadable(path: Path) -> UserError:
    return UserError(f"{path}: not a video that OpenCV can open; is it cut off, or damaged?")


@contextmanager
def _silence() -> Iterator[None]:
    """Keep OpenCV from saying itself what it cannot open."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
