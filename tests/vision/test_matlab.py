import io
import struct

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgh_app.vision.matlab import read_matlab

TYPES = ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]


def saved(arrays, compress=False):
    file = io.BytesIO()
    scipy.io.savemat(file, arrays, do_compression=compress)
    return file.getvalue()


@settings(deadline=None)
@given(
    st.sampled_from(TYPES),
    st.lists(st.integers(0, 4), min_size=2, max_size=4),
    st.booleans(),
    st.integers(0, 99),
)
def test_reads_what_scipy_writes(dtype, shape, compress, seed):
    array = np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
    content = saved({"other": "text", "a": array, "cells": np.array([1, "x"], object), "b": 3.5}, compress)
    found = read_matlab(content, ["a", "b", "absent"])
    assert found.keys() == {"a", "b"}
    np.testing.assert_array_equal(found["a"], array)
    np.testing.assert_array_equal(found["b"], scipy.io.loadmat(io.BytesIO(content))["b"])


def test_reads_big_endian_files_and_logical_arrays():
    def element(kind, data):
        return struct.pack(">II", kind, len(data)) + data + b"\0" * (-len(data) % 8)

    array = (
        element(6, struct.pack(">II", 0x0209, 0))  # logical, stored as uint8
        + element(5, struct.pack(">ii", 2, 3))
        + element(1, b"seen")
        + element(2, bytes([1, 0, 1, 1, 0, 0]))
    )
    content = b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + element(14, array)
    assert read_matlab(content, ["seen"])["seen"].tolist() == [[1, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    "value", ["text", np.array([1, "x"], object), {"f": 1}, np.array([1 + 2j]), scipy.sparse.eye(3).tocsc()]
)
def test_what_is_no_array_of_real_numbers_is_refused_when_asked_for(value):
    content = saved({"a": value, "b": 1.0})
    with pytest.raises(ValueError, match="real numbers"):
        read_matlab(content, ["a"])
    assert read_matlab(content, ["b"])["b"] == 1


@settings(deadline=None, max_examples=300)
@given(st.booleans(), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=3))
def test_damage_gives_an_array_of_the_promised_size_or_one_kind_of_error(compress, damage):
    content = bytearray(saved({"a": np.arange(24.0).reshape(2, 3, 4), "b": 1}, compress))
    for place, byte in damage:
        content[int(place * len(content))] = byte
    try:
        found = read_matlab(bytes(content), ["a"])
    except Exception as error:
        assert isinstance(error, ValueError) or type(error).__module__ == "zlib"
    else:
        assert not damage or set(found) <= {"a"}


@given(st.floats(0, 1, exclude_max=True))
def test_a_file_cut_off_never_gives_a_wrong_array(share):
    content = saved({"a": np.arange(24.0).reshape(4, 6)})
    cut = content[: int(share * len(content))]
    try:
        found = read_matlab(cut, ["a"])
    except ValueError:
        return
    assert found == {}  # cut exactly between two elements
    assert len(cut) == 128
