"""The bytes of a Flower ``Array``, read and written in place where ``np.load`` and ``np.save`` would copy."""

from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Array
from numpy.lib import format as npy_format

STYPE = "numpy.ndarray"


class Header(NamedTuple):
    """What the first bytes of an .npy file say."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    offset: int  # bytes before the first element


@lru_cache(maxsize=4096)
def _parse(data: bytes) -> Header:
    # NumPy evaluates the header as a Python literal, tens of microseconds; K clients send the same few hundred.
    stream = BytesIO(data)
    version = npy_format.read_magic(stream)
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, fortran_order, dtype = read(stream)
    return Header(dtype, shape, fortran_order, stream.tell())


def header(array: Array) -> Header:
    """Return the header of an array, or raise ``ValueError`` if its bytes are not those of an .npy file."""
    if array.stype != STYPE:
        raise ValueError(f"serialised as {array.stype!r}, expected {STYPE!r}")
    data = array.data
    if data[6:7] == b"\x01":
        offset = 10 + int.from_bytes(data[8:10], "little")
    else:
        offset = 12 + int.from_bytes(data[8:12], "little")
    try:
        parsed = _parse(data[:offset])
    except Exception as error:
        raise ValueError(f"not the bytes of an .npy file: {error}") from error
    count = int(np.prod(parsed.shape, dtype=np.int64))
    if parsed.dtype.hasobject or len(data) != offset + count * parsed.dtype.itemsize:
        raise ValueError(f"{len(data)} bytes do not hold {parsed.shape} of {parsed.dtype}")
    return parsed


def flat(array: Array) -> np.ndarray:
    """Return the elements in C order, as a read-only 1-D view on the array's own bytes.

    Only an array stored in Fortran order is copied.
    """
    dtype, shape, fortran_order, offset = header(array)
    elements = np.frombuffer(array.data, dtype, offset=offset)
    return elements.reshape(shape[::-1]).T.reshape(-1) if fortran_order else elements


def wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return what a floating dtype computes in: float32, or float64 where it is wider than that."""
    return np.dtype(np.float64 if dtype.itemsize > 4 else np.float32)


def filled(dtype: np.dtype[Any], shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> Array:
    """Return an ``Array`` whose elements ``fill`` writes, as a flat view, straight into the final bytes."""
    stream = BytesIO()
    description = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy_format.write_array_header_1_0(stream, description)
    offset = stream.tell()
    count = int(np.prod(shape, dtype=np.int64))
    if count:
        stream.seek(offset + count * dtype.itemsize - 1)
        stream.write(b"\0")
        with stream.getbuffer() as raw:
            fill(np.frombuffer(raw, dtype, count, offset))
    # CPython's BytesIO hands out the bytes object that it wrote into: no second copy of the tensor.
    return Array(dtype=str(dtype), shape=shape, stype=STYPE, data=stream.getvalue())
