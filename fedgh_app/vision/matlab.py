"""Numeric arrays of MATLAB 5 files, read with every length checked.

`scipy.io.loadmat` crashes the whole process on some damaged files, and no exception handler sees that. What a
predictions file holds, plain numeric arrays, takes little code to read: MathWorks, "MAT-File Format", chapter 1.
"""

import itertools
import math
import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

# Numbers of the format's element types and array classes.
MATRIX, COMPRESSED = 14, 15
ELEMENT_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
NUMERIC_CLASSES = range(6, 16)  # double, single, and the eight integer types; logical is stored as uint8
COMPLEX_FLAG = 0x0800
HEADER_BYTES = 128
LARGEST_ARRAY_BYTES = 2**31  # compressed, a small file could otherwise ask for all memory


def read_matlab(content: bytes, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of ``names`` that the file holds; ValueError where the content is not such a file.

    Text, cells, structures, sparse and complex arrays are refused only under a name that is asked for.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[126:HEADER_BYTES])
    if order is None:
        raise ValueError("no MATLAB 5 header")
    found = {}
    for kind, data in _elements(content[HEADER_BYTES:], order):
        if kind == COMPRESSED:
            kind, data = next(_elements(_inflate(data), order), (0, b""))
        if kind != MATRIX:
            raise ValueError(f"element of type {kind} where an array was expected")
        parts = _elements(data, order)
        head = [_numbers(part, order) for part in itertools.islice(parts, 3)]
        if len(head) < 3 or not len(head[0]):
            raise ValueError("array without flags, shape and name")
        flags, shape, name = head
        key = name.tobytes().decode("latin-1")
        if key in names:
            found[key] = _array(key, int(flags[0]), tuple(int(n) for n in shape), parts, order)
    return found


def _array(key: str, flags: int, shape: tuple[int, ...], parts: Iterator[tuple[int, bytes]], order: str) -> np.ndarray:
    """The real part that follows an array's flags, shape and name; MATLAB's first axis varies fastest."""
    if flags & 0xFF not in NUMERIC_CLASSES:
        raise ValueError(f"{key!r} is no array of real numbers")
    if flags & COMPLEX_FLAG:
        raise ValueError(f"{key!r} is complex, not real numbers")
    values = _numbers(next(parts, (0, b"")), order)
    if len(shape) < 2 or min(shape) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"{key!r} has {len(values)} values for shape {shape}")
    return values.reshape(shape, order="F")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of each data element in turn."""
    place = 0
    while place < len(data):
        if place + 8 > len(data):
            raise ValueError("cut off within an element's tag")
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start = place + 8
        if kind >> 16:  # the small form: size, type and up to four bytes in the eight of the tag
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
            if size > 4:
                raise ValueError(f"small element of {size} bytes")
            place += 8
        else:
            # All but compressed elements are padded to eight bytes.
            place = start + (size if kind == COMPRESSED else -(-size // 8) * 8)
        if start + size > len(data):
            raise ValueError("cut off within an element")
        yield kind, data[start : start + size]


def _numbers(element: tuple[int, bytes], order: str) -> np.ndarray:
    """A numeric element as an array (n,)."""
    kind, data = element
    if kind not in ELEMENT_TYPES:
        raise ValueError(f"element of type {kind} where numbers were expected")
    return np.frombuffer(data, np.dtype(order + ELEMENT_TYPES[kind]))


def _inflate(data: bytes) -> bytes:
    inflated = zlib.decompressobj()
    content = inflated.decompress(data, LARGEST_ARRAY_BYTES)
    if not inflated.eof:
        raise ValueError("compressed array is cut off or too large")
    return content
