"""Crops of a whole data set as one memory-mapped array, built once and shared through the page cache.

Decoding a photograph costs a hundred times what warping its crop costs. So what a task needs of each image is cut out
once, and training only warps from there. What stands beside the crops is the task's own.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from fedgh_app.errors import UserError
from fedgh_app.vision.threads import usable_cores

# Crops in flight between the decoding threads and the file: bounds the builder's memory.
BLOCK = 256
CROPS, ARRAYS, META = "crops.u8", "arrays.npz", "meta.json"

T = TypeVar("T")
R = TypeVar("R")


def fingerprint(settings: Sequence[object], annotations: Path, images: Path) -> str:
    """Hash of all that crops depend on: settings, annotation file, each image's name, size and time."""
    try:
        state = annotations.stat()
    except OSError as error:
        raise UserError(f"{annotations}: annotation file is missing") from error
    digest = hashlib.sha256(json.dumps([*settings, state.st_size, state.st_mtime_ns]).encode())
    digest.update(_sha(str(annotations), state.st_size, state.st_mtime_ns, state.st_ino))
    for line in sorted(_listing(images, "")):
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


def opened(directory: Path, name: str, build: Callable[[Path], None]) -> Path:
    """The folder of the cache ``name`` below ``directory``, filled by ``build`` where it is not whole.

    Processes that ask at once wait for one of them to build it. It appears whole or not at all. Its name tells all that
    it depends on, so that other data or settings make another one. Raises UserError where it cannot be kept there.
    """
    path = directory / name
    try:
        if not is_whole(path):
            directory.mkdir(parents=True, exist_ok=True)
            with _locked(directory / f"{name}.lock"):
                if not is_whole(path):  # nobody built it while we waited
                    _build(path, build)
    except OSError as error:
        raise UserError(f"{directory}: cannot keep the crop cache here: {error.strerror or error}") from error
    return path


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


def _build(path: Path, build: Callable[[Path], None]) -> None:
    for remains in (path, *path.parent.glob(f"{path.name}.part*")):  # damaged, or left by a process that died
        shutil.rmtree(remains, ignore_errors=True)
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    part.mkdir()
    try:
        build(part)
        try:
            part.rename(path)
        except OSError:
            if not is_whole(path):  # else, without a lock, somebody was faster: theirs is the same
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def in_order(items: Sequence[T], work: Callable[[T], R]) -> Iterator[tuple[T, R | UserError]]:
    """Each item, in order, with what ``work`` makes of it or its `UserError`; a thread a core: OpenCV frees the GIL."""

    def attempt(item: T) -> R | UserError:
        try:
            return work(item)
        except UserError as error:
            return error

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the pool is the parallelism; OpenCV's own threads on top would only get in its way
    try:
        with ThreadPoolExecutor(usable_cores()) as pool:
            for start in range(0, len(items), BLOCK):
                block = items[start : start + BLOCK]
                yield from zip(block, pool.map(attempt, block), strict=True)
    finally:
        cv2.setNumThreads(threads)


def write_crops(part: Path, crops: Iterator[np.ndarray]) -> None:
    """Write crops (H, W, 3) uint8 one after the other; on the disk afterwards."""
    with (part / CROPS).open("wb") as file:
        for crop in crops:
            # Written, not stored through a map: on a full disk that would kill the process (SIGBUS).
            file.write(np.ascontiguousarray(crop).data)
        file.flush()
        os.fsync(file.fileno())


def write_columns(
    part: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Sequence[str]], meta: Mapping[str, object]
) -> None:
    """Write what stands beside the crops, and what makes the cache whole.

    Arrays are (N, …), attributes (N) words, empty where an example lacks it; ``meta`` has the ``shape`` of the crops,
    (N, H, W, 3), and what else the task wants to know again, as JSON can hold it.
    """
    # By number: an attribute's name need not be a file's.
    named = {f"attribute{place}": np.array(attributes[name]) for place, name in enumerate(sorted(attributes))}
    with (part / ARRAYS).open("wb") as file:
        np.savez(file, **arrays, **named)  # type: ignore[arg-type]  # names of arrays, none of an option
    (part / META).write_text(json.dumps({**meta, "attributes": sorted(attributes)}), encoding="utf-8")


def is_whole(path: Path) -> bool:
    """Whether a cache lies at `path` with all its bytes."""
    try:
        meta = json.loads((path / META).read_bytes())
        whole = (path / CROPS).stat().st_size == int(np.prod(meta["shape"]))
        return whole and (path / ARRAYS).is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any]]:
    """Map a whole cache: crops (N, H, W, 3) uint8, arrays, attributes and meta, as they were written; read only."""
    meta = json.loads((path / META).read_bytes())
    with np.load(path / ARRAYS, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    for array in arrays.values():
        array.flags.writeable = False  # shared by all who open the cache in this process
    attributes = {name: arrays.pop(f"attribute{place}") for place, name in enumerate(meta["attributes"])}
    crops = np.memmap(path / CROPS, dtype=np.uint8, mode="r", shape=tuple(meta["shape"]))
    return crops, arrays, attributes, meta
