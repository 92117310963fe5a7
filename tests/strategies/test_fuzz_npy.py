"""Any bytes where an array was expected: a ``ValueError``, never an object, never more memory than there are bytes."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array
from hypothesis import strategies as st
from mutation import counted, damaged, fuzz

from strategies import npy


def saved(array: np.ndarray, **options: bool) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


@counted
def test_headers(count: int) -> None:
    valid = [saved(np.arange(12, dtype=np.float32).reshape(3, 4)), saved(np.zeros(())), saved(np.asfortranarray([[1]]))]

    def check(sent: tuple[bytes, str]) -> None:
        array = Array(dtype="float32", shape=(3, 4), stype=sent[1], data=sent[0])
        try:
            found = npy.flat(array)
        except ValueError:
            return
        assert found.nbytes <= len(sent[0]) and not found.dtype.hasobject

    fuzz(check, st.tuples(damaged(*valid), st.sampled_from([npy.STYPE] * 9 + ["pickle"])), count)


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a pickle was loaded",))


def test_an_array_of_objects_is_not_unpickled() -> None:
    data = saved(np.array([Trap()], dtype=object), allow_pickle=True)
    array = Array(dtype="object", shape=(1,), stype=npy.STYPE, data=data)
    with pytest.raises(ValueError, match=r"do not hold \(1,\) of object"):
        npy.flat(array)
    with pytest.raises(ValueError, match="allow_pickle=False"):  # Flower's own way
        array.numpy()


def test_a_header_that_states_more_than_there_is_takes_no_memory() -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)})
    array = Array(dtype="float32", shape=(2**40,), stype=npy.STYPE, data=stream.getvalue())
    tracemalloc.start()
    with pytest.raises(ValueError, match="bytes do not hold"):
        npy.flat(array)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()
