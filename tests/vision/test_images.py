import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from fedgh_app.errors import UserError
from fedgh_app.vision.images import read_image


def png(width: int, height: int) -> bytes:
    """A whole black PNG of one bit a pixel, as small as its size allows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + -(-width // 8))
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_the_small_one_is_an_image() -> None:
    """Else the next test would show nothing."""
    assert cv2.imdecode(np.frombuffer(png(40, 30), np.uint8), cv2.IMREAD_COLOR).shape == (30, 40, 3)


def test_a_small_file_of_a_huge_image_takes_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    file.write_bytes(png(20_000, 20_000))
    assert file.stat().st_size < 60_000
    with pytest.raises(UserError, match=r"bomb\.png: image is too large, expected at most 100000000 pixels$"):
        read_image(file)
    code = f"""
import pathlib, resource
from fedgh_app import errors
from fedgh_app.vision import images
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    images.read_image(pathlib.Path({str(file)!r}))
except errors.UserError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50_000  # kB; decoded it is 1,200,000
