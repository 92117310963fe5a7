"""What is opened while a test runs: every path that Python opens, and every access to a folder that the kernel sees."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IN_OPEN, IN_CREATE, IN_NONBLOCK = 0x20, 0x100, 0o4000
EVENTS = ("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove")

_paths: list[str] | None = None
_others: list[str] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _paths is None:
        return
    if event in EVENTS and isinstance(arguments[0], str | bytes | os.PathLike):
        _paths.append(os.path.abspath(os.fsdecode(arguments[0])))  # noqa: PTH100  # Path.resolve would follow links
    elif event in ("subprocess.Popen", "os.system", "os.exec", "socket.connect", "socket.getaddrinfo"):
        _others.append(f"{event} {arguments}")


sys.addaudithook(_hook)  # for good: Python has no way to take one back


@contextmanager
def audited() -> Iterator[tuple[list[str], list[str]]]:
    """Paths that Python opens, lists, makes or removes inside the block, and processes and connections it starts."""
    global _paths
    _paths = []
    _others.clear()
    try:
        yield _paths, _others
    finally:
        _paths = None


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Names opened in ``folder`` or below, by whatever code, once the block has ended (inotify; Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(IN_NONBLOCK)
    places = {}
    for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        number = libc.inotify_add_watch(descriptor, os.fsencode(place), IN_OPEN | IN_CREATE)
        assert number >= 0, os.strerror(ctypes.get_errno())
        places[number] = place
    found: list[str] = []
    try:
        yield found
        while True:
            try:
                data = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                break
            while data:
                number, _, _, length = struct.unpack_from("iIII", data)
                name = data[16 : 16 + length].rstrip(b"\0").decode()
                found.append(str(places[number] / name))
                data = data[16 + length :]
    finally:
        os.close(descriptor)
