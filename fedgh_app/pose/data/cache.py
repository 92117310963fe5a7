"""Crops of a whole data set as one memory-mapped array, built once and shared through the page cache.

Decoding a photograph costs a hundred times what warping its crop costs. So each box is cut out once, with a
margin in which a later rotation or zoom finds real pixels, and training only warps from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from fedgh_app.errors import UserError
from fedgh_app.pose.data import crops as cropping
from fedgh_app.pose.data.records import BadRecord, DatasetSpec, PoseRecord
from fedgh_app.pose.data.split import split_records
from fedgh_app.pose.readers import annotation_file, read_records
from fedgh_app.vision.cores import usable_cores
from fedgh_app.vision.images import read_image

# Raise it whenever the code would make other crops from the same files.
VERSION = 2
# A crop's size as a multiple of the network's input: what rotation and zoom may show beyond it.
MARGIN = 1.5
# Crops in flight between the decoding threads and the file: bounds the builder's memory.
BLOCK = 256
ARRAYS = ("keypoints", "visible", "reference_length", "to_image", "split", "group", "ids", "images")


@dataclass(frozen=True, eq=False)
class CropCache:
    """N crops of H' x W' pixels with everything that training needs to know of them.

    `crops` (N, H', W', 3) uint8 RGB, read only; `keypoints` (N, J, 2) float32 and `reference_length` (N,)
    float32 in pixels of those crops; `visible` (N, J) bool; `to_image` (N, 2, 3) float64 maps them back to
    the image; `split`, `group`, `ids`, `images` (N,) str, `attributes` each (N,) str, empty where a record
    lacks it. The middle `input_size` = (h, w) pixels of a crop are the network's unaugmented input.
    """

    crops: np.ndarray
    keypoints: np.ndarray
    visible: np.ndarray
    reference_length: np.ndarray
    to_image: np.ndarray
    split: np.ndarray
    group: np.ndarray
    ids: np.ndarray
    images: np.ndarray
    attributes: dict[str, np.ndarray]
    bad: list[BadRecord]
    spec: DatasetSpec
    input_size: tuple[int, int]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.crops)

    def indices(self, split: Literal["train", "test"]) -> np.ndarray:
        """Positions of the records of one side of the split, ascending (n,) int64."""
        return np.flatnonzero(self.split == split)


def open_cache(
    spec: DatasetSpec,
    root: Path,
    *,
    input_size: tuple[int, int],
    margin: float = MARGIN,
    on_bad: Literal["raise", "skip"] = "raise",
    directory: Path,
) -> CropCache:
    """The crop cache of the data under `root`, built below `directory` if it is not there.

    `input_size` is (h, w); crops are about `margin` times that. The cache's name is a hash of all it depends
    on, so changed data or settings make another one. Processes that ask at once wait for one of them to build
    it.
    """
    check_sizes(input_size, margin)
    root, directory = Path(root).absolute(), Path(directory).absolute()
    if not root.is_dir():
        raise UserError(f"dataset.root={root}: no such folder; to get the data: {spec.obtain}")
    name = fingerprint(spec, root, input_size, margin)
    path = directory / name
    try:
        if not _is_whole(path):
            directory.mkdir(parents=True, exist_ok=True)
            with _locked(directory / f"{name}.lock"):
                if not _is_whole(path):  # nobody built it while we waited
                    _build(path, spec, root, input_size, margin, on_bad)
        cache = _load(path, (path / "meta.json").stat().st_ino, spec)
    except OSError as error:
        raise UserError(f"{directory}: cannot keep the crop cache here: {error.strerror or error}") from error
    if cache.bad and on_bad == "raise":
        raise UserError(str(cache.bad[0]))
    return cache


def check_sizes(input_size: tuple[int, int], margin: float) -> None:
    """Refuse sizes that no crop can have."""
    if len(input_size) != 2 or min(input_size) < 1:
        raise UserError(f"input_size={tuple(input_size)}, expected (height, width) in pixels, at least 1")
    if not 1 <= margin <= 4:
        raise UserError(f"margin={margin}, expected 1 to 4")


def crop_size(input_size: tuple[int, int], margin: float) -> tuple[int, int]:
    """(H', W') near `margin` times `input_size`, with an equal whole number of pixels added on both sides.

    Then the unaugmented input is a plain slice of the crop, with no interpolation in between.
    """
    height, width = (side + 2 * round((margin - 1) * side / 2) for side in input_size)
    return height, width


def fingerprint(spec: DatasetSpec, root: Path, input_size: tuple[int, int], margin: float) -> str:
    """Hash of all that crops depend on: settings, annotation file, each image's name, size and time."""
    annotations, _ = annotation_file(spec, root)
    try:
        state = annotations.stat()
    except OSError as error:
        raise UserError(f"{annotations}: annotation file is missing") from error
    digest = hashlib.sha256()
    settings = [VERSION, asdict(spec), str(root), list(input_size), margin, state.st_size, state.st_mtime_ns]
    digest.update(json.dumps(settings).encode())
    digest.update(_sha(str(annotations), state.st_size, state.st_mtime_ns, state.st_ino))
    for line in sorted(_listing(root / "images", "")):
        digest.update(line)
    return digest.hexdigest()[:24]


@lru_cache(maxsize=64)
def _sha(path: str, size: int, mtime: int, inode: int) -> bytes:
    """Content hash, kept per process since a client asks for each message; the rest is the memory's key."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise UserError(f"{path}: annotation file cannot be read: {error.strerror}") from error


def _listing(folder: Path, prefix: str) -> Iterator[bytes]:
    """A line per file under `folder`; a scan is several times as fast as a `stat` by path for each record."""
    try:
        entries = os.scandir(folder)
    except OSError as error:
        raise UserError(f"{folder}: image folder cannot be read: {error.strerror}") from error
    with entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):  # no record may have an image behind a link that leads out
                yield from _listing(folder / entry.name, f"{prefix}{entry.name}/")
            elif entry.is_file():  # a dangling link is no file: its record is reported as missing
                state = entry.stat()
                yield os.fsencode(f"{prefix}{entry.name}\0{state.st_size}\0{state.st_mtime_ns}\n")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` among processes; the system drops it when a holder dies."""
    try:
        import fcntl
    except ImportError:  # not POSIX: the atomic rename alone keeps caches whole; work may be done twice
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cut(record: PoseRecord, input_size: tuple[int, int], margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Decode a record's image and crop it: (H', W', 3) uint8 and the map (2, 3) from image to crop."""
    image = read_image(record.image)
    check_image(record, image)
    return cut_box(image, record.box, input_size, margin)


def check_image(record: PoseRecord, image: np.ndarray) -> None:
    """Raise a `UserError` where the image does not fit the annotation."""
    height, width = image.shape[:2]
    if record.image_size is not None and record.image_size != (width, height):
        stated = "x".join(map(str, record.image_size))
        raise UserError(f"{record.image}: image is {width}x{height}, its annotation says {stated}")
    if is_outside(record.box, width, height):
        box = [round(float(value), 1) for value in record.box]
        raise UserError(f"{record.image}: box {box} of record {record.id} lies outside the {width}x{height} image")


def is_outside(box: np.ndarray, width: int, height: int) -> bool:
    """Whether a box (x, y, width, height) has nothing in common with an image."""
    x, y, box_width, box_height = box
    return bool(x >= width or y >= height or x + box_width <= 0 or y + box_height <= 0)


def cut_box(
    image: np.ndarray, box: np.ndarray, input_size: tuple[int, int], margin: float = MARGIN
) -> tuple[np.ndarray, np.ndarray]:
    """Crop of an image (H, W, 3) around a box: (H', W', 3) uint8 and the map (2, 3) from image to crop."""
    h, w = input_size
    matrix = cropping.crop_matrix(box, (w, h))
    crop_height, crop_width = crop_size(input_size, margin)
    matrix[:, 2] += ((crop_width - w) / 2, (crop_height - h) / 2)
    return cropping.crop_image(image, matrix, (crop_width, crop_height)), matrix


def network_input(image: np.ndarray, box: np.ndarray, input_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What a network sees of a box when it is tested: (h, w, 3) uint8 and the map (2, 3) from image to input.

    Cut with the margin of training and then sliced, though the margin is thrown away: a crop without it would be
    averaged over other blocks of pixels, and so differ in its last bits.
    """
    h, w = input_size
    crop, matrix = cut_box(image, box, input_size)
    top, left = (crop.shape[0] - h) // 2, (crop.shape[1] - w) // 2
    matrix[:, 2] -= (left, top)
    return crop[top : top + h, left : left + w], matrix


def cut_records(records: Sequence[PoseRecord], spec: DatasetSpec, input_size: tuple[int, int]) -> CropCache:
    """Crops of a few records, at least one, in memory and on no side of a split; UserError for a bad record."""
    cuts = [cut(record, input_size, MARGIN) for record in records]
    return CropCache(
        crops=np.stack([crop for crop, _ in cuts]),
        **_arrays(records, np.stack([matrix for _, matrix in cuts]), [""] * len(records)),
        attributes={},
        bad=[],
        spec=spec,
        input_size=input_size,
        fingerprint="",
    )


def _build(
    path: Path,
    spec: DatasetSpec,
    root: Path,
    input_size: tuple[int, int],
    margin: float,
    on_bad: Literal["raise", "skip"],
) -> None:
    """Write the cache beside `path` and rename it into place, so that it is there whole or not at all."""
    records, bad = read_records(spec, root, on_bad=on_bad)
    split_records(records, spec)  # before the slow part: a contradiction in the file is found at once
    for remains in (path, *path.parent.glob(f"{path.name}.part*")):  # damaged, or left by a process that died
        shutil.rmtree(remains, ignore_errors=True)
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    part.mkdir()
    try:
        matrices = []
        kept: list[PoseRecord] = []
        with (part / "crops.u8").open("wb") as file:
            for record, result in _cut_all(records, input_size, margin):
                if isinstance(result, UserError):
                    if on_bad == "raise":
                        raise result
                    reason = str(result).removeprefix(f"{record.image}: ")
                    bad.append(BadRecord(record.image, reason))
                    continue
                # Written, not stored through a map: on a full disk that would kill the process (SIGBUS).
                file.write(np.ascontiguousarray(result[0]).data)
                matrices.append(result[1])
                kept.append(record)
            file.flush()
            os.fsync(file.fileno())
        if not kept:
            raise UserError(f"{root}: no usable pose of data set {spec.name} ({len(bad)} bad records)")
        _write_arrays(part, spec, kept, np.stack(matrices))
        meta = {
            "shape": [len(kept), *crop_size(input_size, margin), 3],
            "input_size": list(input_size),
            "bad": [[str(entry.file), entry.reason] for entry in bad],
            "attributes": sorted({key for record in kept for key in record.attributes}),
        }
        (part / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        try:
            part.rename(path)
        except OSError:
            if not _is_whole(path):  # else, without a lock, somebody was faster: theirs is the same
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _cut_all(
    records: Sequence[PoseRecord], input_size: tuple[int, int], margin: float
) -> Iterator[tuple[PoseRecord, tuple[np.ndarray, np.ndarray] | UserError]]:
    """Crops in the records' order, on as many threads as this process has cores: OpenCV releases the GIL."""

    def attempt(record: PoseRecord) -> tuple[np.ndarray, np.ndarray] | UserError:
        try:
            return cut(record, input_size, margin)
        except UserError as error:
            return error

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the pool is the parallelism; OpenCV's own threads on top would only get in its way
    try:
        with ThreadPoolExecutor(usable_cores()) as pool:
            for start in range(0, len(records), BLOCK):
                block = records[start : start + BLOCK]
                yield from zip(block, pool.map(attempt, block), strict=True)
    finally:
        cv2.setNumThreads(threads)


def _write_arrays(part: Path, spec: DatasetSpec, records: Sequence[PoseRecord], matrices: np.ndarray) -> None:
    arrays = _arrays(records, matrices, split_records(records, spec))
    names = sorted({key for record in records for key in record.attributes})
    for position, name in enumerate(names):  # by number: an attribute's name need not be a file's
        arrays[f"attribute{position}"] = np.array([record.attributes.get(name, "") for record in records])
    with (part / "arrays.npz").open("wb") as file:
        np.savez(file, **arrays)


def _arrays(records: Sequence[PoseRecord], matrices: np.ndarray, split: Sequence[str]) -> dict[str, Any]:
    """`ARRAYS` by name, of records whose crops were cut by `matrices` (N, 2, 3)."""
    keypoints = np.stack([record.keypoints for record in records])
    lengths = np.array([record.reference_length for record in records])
    return {
        "keypoints": cropping.apply_affine(keypoints, matrices).astype(np.float32),
        "visible": np.stack([record.visible for record in records]),
        "reference_length": (lengths * cropping.magnification(matrices)).astype(np.float32),
        "to_image": cropping.invert_affine(matrices),
        "split": np.array(split),
        "group": np.array([record.group for record in records]),
        "ids": np.array([record.id for record in records]),
        "images": np.array([str(record.image) for record in records]),
    }


def _is_whole(path: Path) -> bool:
    """Whether a cache lies at `path` with all its bytes."""
    try:
        meta = json.loads((path / "meta.json").read_bytes())
        whole = (path / "crops.u8").stat().st_size == int(np.prod(meta["shape"]))
        return whole and (path / "arrays.npz").is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return False


@lru_cache(maxsize=8)
def _load(path: Path, inode: int, spec: DatasetSpec) -> CropCache:
    """Map a whole cache; kept per process until another one lies at `path` (`inode` of its meta file)."""
    meta = json.loads((path / "meta.json").read_bytes())
    with np.load(path / "arrays.npz", allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    for array in arrays.values():
        array.flags.writeable = False  # shared by all who open the cache in this process
    return CropCache(
        crops=np.memmap(path / "crops.u8", dtype=np.uint8, mode="r", shape=tuple(meta["shape"])),
        **{name: arrays[name] for name in ARRAYS},
        attributes={name: arrays[f"attribute{position}"] for position, name in enumerate(meta["attributes"])},
        bad=[BadRecord(Path(file), reason) for file, reason in meta["bad"]],
        spec=spec,
        input_size=(meta["input_size"][0], meta["input_size"][1]),
        fingerprint=path.name,
    )
