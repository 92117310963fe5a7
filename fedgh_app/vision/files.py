"""Files (JSON too) and folders, there whole or not at all: written beside their place, then renamed into it."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

UMASK = os.umask(0o022)
os.umask(UMASK)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling of ``path`` that takes its place when the block ends well, and vanishes when not.

    Content and name are on the disk by then: after a power cut there is the old file or the new one, whole.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield draft
        draft.chmod(0o666 & ~UMASK)  # safetensors would leave its files to their owner alone
        synchronise(draft)
        draft.replace(path)
        synchronise(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def synchronise(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def staged(root: Path) -> Iterator[Path]:
    """A temporary sibling of the folder ``root`` that takes its place when the block ends well.

    Where ``root`` is a link, it stays, and the folder that it leads to is what is replaced.
    """
    root = root.resolve()
    root.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        yield stage
        stage.chmod(0o777 & ~UMASK)  # mkdtemp makes it private
        if root.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{root.name}-old-", dir=root.parent))
            try:
                root.replace(old)  # rename(2) may replace an empty folder
                try:
                    stage.replace(root)
                except BaseException:
                    old.replace(root)
                    raise
            finally:
                shutil.rmtree(old, ignore_errors=True)
        else:
            stage.replace(root)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def plain(value: object) -> object:
    """``value`` as JSON can hold it: arrays as lists, numbers as Python's own, paths as text, nan and inf as null."""
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # an array, a tensor, a number of NumPy's
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: object) -> None:
    """Write ``content`` as JSON, atomically."""
    with replacing(path) as draft:
        draft.write_text(json.dumps(plain(content), indent=1) + "\n")
