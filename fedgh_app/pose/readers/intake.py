"""What every annotation must satisfy, whatever its format, before it becomes a `PoseRecord`."""

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import scipy.io

from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import DatasetSpec, PoseRecord
from fedgh_app.vision.matlab import read_matlab

# 0.6 x the diagonal of MPII's head box (its evaluation's "SC_BIAS") is 0.75 x the distance from upper neck to head top:
# of the 2,932 validation people that have both, it holds up to rounding for 94 % (they are the box's own ends).
HEAD_BOX_FACTOR = 0.6
HEAD_JOINTS_FACTOR = 0.75
# Where the reference joints are not labelled, a share of the person's longest side: 0.41 is the median of
# LSPET's torsos; 0.125 is an eighth, the head's share of a standing adult, for MPII's person height.
TORSO_SHARE = 0.41
HEAD_SHARE = 0.125
# Twice COCO's largest keypoint file; Python takes some ten times as much memory for what is in it.
LARGEST_JSON = 2**29
# Address space of the process that reads a MATLAB file; MPII's takes a tenth.
PARSER_BYTES = 2**34
# Names and attributes of all people are kept in arrays whose every element has the room of the longest.
LONGEST_TEXT = 1000


class BadEntry(Exception):
    """One annotation that cannot be used, perhaps for a `missing` file; reading goes on with the next."""

    def __init__(self, reason: str, missing: Path | None = None) -> None:
        super().__init__(reason)
        self.missing = missing


@dataclass(frozen=True, eq=False)
class RawPose:
    """One annotation as a format gives it, numbers already in 0-based pixels; still to be checked.

    `keypoints` (J, 2), `visible` (J,), `box` x, y, width, height, `head` the head box x1, y1, x2, y2 if there is one.
    """

    id: str
    file_name: object
    keypoints: np.ndarray
    visible: np.ndarray
    box: np.ndarray
    head: np.ndarray | None = None
    group: str | None = None
    split: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None
    image_id: int | str = ""


# What messages call each annotation of a file, in turn, and a function that reads it or raises `BadEntry`.
Entries = Iterator[tuple[str, Callable[[], RawPose]]]
Reader = Callable[[DatasetSpec, Path], Entries]


def record(raw: RawPose, spec: DatasetSpec, root: Path | None) -> PoseRecord:
    """Check `raw` and make a record of it; `BadEntry` says what is wrong. Without a `root` no image is looked for."""
    image = Path(str(raw.file_name)) if root is None else image_path(root, raw.file_name)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is caught as not finite
        keypoints, box = raw.keypoints.astype(np.float32), raw.box.astype(np.float32)
    visible = raw.visible.astype(bool)
    if not visible.any():
        raise BadEntry("no keypoint is visible")
    if not np.isfinite(keypoints[visible]).all():
        raise BadEntry("a visible keypoint is not finite")
    keypoints[~visible] = 0.0  # unlabelled: formats leave anything here, also NaN
    if not np.isfinite(box).all():
        raise BadEntry(f"box {box.tolist()} is not finite")
    if box[2] <= 0 or box[3] <= 0:
        raise BadEntry(f"box {box.tolist()} has no area")
    length = reference_length(spec, keypoints, visible, box, raw.head)
    if not np.isfinite(length) or length <= 0:
        raise BadEntry(f"reference length ({spec.reference}) is {length}, expected more than 0")
    if raw.split not in (None, "train", "test"):
        raise BadEntry(f"split={raw.split!r}, expected train or test")
    for text in (raw.id, str(raw.file_name), raw.group or "", *raw.attributes, *raw.attributes.values()):
        if len(text) > LONGEST_TEXT or "\0" in text:
            raise BadEntry(f"{text[:40]!r}… has {len(text)} characters, expected at most {LONGEST_TEXT}, and no NUL")
    return PoseRecord(
        id=raw.id,
        image=image,
        keypoints=keypoints,
        visible=visible,
        box=box,
        reference_length=length,
        group=raw.group if raw.group is not None else str(raw.file_name),
        split=raw.split,
        attributes=dict(raw.attributes),
        image_size=raw.image_size,
        image_id=raw.image_id,
    )


def image_path(root: Path, file_name: object) -> Path:
    """`<root>/images/<file_name>`, which must exist and must not lead out of that folder, by its name or by a link.

    The folder itself may be a link: labs keep their images on other disks.
    """
    if not isinstance(file_name, str) or not file_name or "\0" in file_name:
        raise BadEntry(f"image name {file_name!r}, expected a file name")
    tidy = os.path.normpath(file_name)
    if Path(tidy).is_absolute() or Path(tidy).parts[:1] in ((), ("..",)):
        raise BadEntry(f"image name {file_name!r} leads out of {root / 'images'}")
    path = root / "images" / tidy
    if not os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises for a name that is too long)
        raise BadEntry("image is missing", path)
    if not os.path.realpath(path).startswith(_resolved(root / "images")):
        raise BadEntry(f"image {file_name!r} is a link that leads out of {root / 'images'}")
    return path


@functools.lru_cache(maxsize=16)
def _resolved(folder: Path) -> str:
    """The folder without links, and the separator after it."""
    return os.path.realpath(folder) + os.sep


def reference_length(
    spec: DatasetSpec, keypoints: np.ndarray, visible: np.ndarray, box: np.ndarray, head: np.ndarray | None
) -> float:
    """The metric's unit in pixels: box, torso (left shoulder to right hip) or head, as `spec.reference` says.

    Where the joints of a torso or head are not labelled, the other diagonal of the torso stands in, then a
    fixed share of the person's longest side, so that the record can still be trained on.
    """

    def distance(first: str, second: str) -> float:
        if not {first, second} <= set(spec.keypoints):
            raise UserError(f"{spec.name}: reference={spec.reference} needs keypoints {first} and {second}")
        ends = [spec.keypoints.index(first), spec.keypoints.index(second)]
        return float(np.linalg.norm(np.subtract(*keypoints[ends]))) if visible[ends].all() else 0.0

    longest = float(box[2:].max())
    if spec.reference == "box":
        return longest
    if spec.reference == "torso":
        straight = distance("left_shoulder", "right_hip") or distance("right_shoulder", "left_hip")
        return straight or TORSO_SHARE * longest
    if head is not None and np.isfinite(head).all():
        diagonal = float(np.hypot(head[2] - head[0], head[3] - head[1]))
        if diagonal > 0:
            return HEAD_BOX_FACTOR * diagonal
    return HEAD_JOINTS_FACTOR * distance("head_top", "upper_neck") or HEAD_SHARE * longest


def numbers(value: object, shape: tuple[int, ...], name: str) -> np.ndarray:
    """`value` as a float64 array of `shape`, -1 standing for any length; `BadEntry` for anything else."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # e.g. rows of different lengths
        raise BadEntry(f"{name}: expected numbers of shape {shape}") from error
    if array.dtype.kind not in "iuf":
        raise BadEntry(f"{name}: expected numbers of shape {shape}, found {_short(value)}")
    if array.ndim != len(shape) or any(want not in (-1, have) for want, have in zip(shape, array.shape, strict=True)):
        raise BadEntry(f"{name}: expected shape {shape}, found {array.shape}")
    return array.astype(np.float64)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextmanager
def _parsing(path: Path, expected: str) -> Iterator[None]:
    """Whatever goes wrong as a `UserError` that names the file: parsers raise errors of all kinds on damaged ones."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: annotation file is missing") from error
    except OSError as error:
        raise UserError(f"{path}: annotation file cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise UserError(f"{path}: not {expected}: {' '.join(str(error).split())}") from error


def read_json(path: Path) -> object:
    """The content of a JSON file; `UserError` naming it where there is none."""
    with _parsing(path, "valid JSON"):
        if (size := path.stat().st_size) > LARGEST_JSON:
            raise UserError(f"{path}: found {size} bytes of JSON, expected at most {LARGEST_JSON}")
        return json.loads(path.read_bytes())


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Those numeric arrays of a MATLAB 5 file, however damaged, that are asked for; `UserError` where it is not one."""
    with _parsing(path, "a readable MATLAB file"):
        return read_matlab(path.read_bytes(), names)


def read_mat(path: Path, **options: bool) -> dict[str, object]:
    """The variables of a MATLAB file up to version 7; `UserError` naming it where there are none.

    SciPy's parser, which alone reads structures, crashes its whole process on some damaged files. So it runs in a
    process of its own.
    """
    with _parsing(path, "a readable MATLAB file"):
        path.stat()  # no process for a file that is not there
        try:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_limit_memory) as parser:
                return dict(parser.submit(scipy.io.loadmat, str(path), **options).result())
        except BrokenProcessPool as error:
            raise UserError(f"{path}: damaged MATLAB file, whose parser crashed") from error
        except NotImplementedError as error:
            raise UserError(f"{path}: MATLAB 7.3 file; expected one saved with -v7 or older") from error


def _limit_memory() -> None:
    """Let this process fail, not the machine, where a small compressed file asks for all memory."""
    try:
        import resource
    except ImportError:  # not POSIX
        return
    resource.setrlimit(resource.RLIMIT_AS, (PARSER_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
