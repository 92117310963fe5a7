"""Fuzzing: damaged bytes and altered JSON out of valid ones, and how many of them a test tries."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

FEW = 40
MANY = int(os.environ.get("FEDGH_FUZZ", "500"))

# A test with this takes how many examples to try: few each time, many where `make test-all` asks.
counted = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(0)])])

# What a hand or a hostile program puts where something else was expected.
ODD = [None, True, -1, 0, 2**31, 2**63, 10**400, -0.0, 1e308, 1e-320, float("nan"), float("inf"), "", "\0", "é" * 300]
ODD += ["..", "../x", "/etc/passwd", "\ud800", [], {}, [[]], [None], {"": None}, [1e308] * 3, "1", "[1,", "${x}", "~"]


def fuzz(check: Callable[[Any], None], examples: st.SearchStrategy[Any], count: int) -> None:
    """Call ``check`` with ``count`` examples; the same ones each time where they are few."""
    tried = given(examples)(check)
    if count > FEW:
        tried = seed(int(os.environ.get("FEDGH_FUZZ_SEED", "0")))(tried)
    settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count <= FEW,
        suppress_health_check=list(HealthCheck),
    )(tried)()


@st.composite
def damaged(draw: st.DrawFn, *valid: bytes) -> bytes:
    """A valid file cut off, with bytes changed, a part missing or twice, or something else altogether."""
    data = bytearray(draw(st.sampled_from(valid)))
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=300))

    def place() -> int:
        # Heads of files say what follows, so half of the damage goes there.
        last = max(len(data) - 1, 0)
        return draw(st.one_of(st.integers(0, min(last, 300)), st.integers(0, last)))

    for _ in range(draw(st.integers(1, 4))):
        kind, start = draw(st.integers(0, 5)), place()
        if kind == 0:
            del data[start:]
        elif kind == 1 and data:
            data[start] = draw(st.integers(0, 255))
        elif kind == 2 and data:
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == 3:  # a length or an offset
            width = draw(st.sampled_from([2, 4, 8]))
            number = draw(st.sampled_from([0, 1, 0x7F, 0xFF, 2 ** (8 * width - 1), 2 ** (8 * width) - 1]))
            data[start : start + width] = number.to_bytes(width, draw(st.sampled_from(["little", "big"])))
        elif kind == 4:
            data[start:start] = draw(st.binary(max_size=16))
        else:
            part = data[start : start + draw(st.integers(1, 200))]
            if draw(st.booleans()):
                del data[start : start + len(part)]
            else:
                data[start:start] = part
    return bytes(data)


@st.composite
def altered(draw: st.DrawFn, valid: Any) -> Any:
    """A tree of lists, mappings and leaves with some of its parts replaced, left out, or there twice."""
    tree = {"": copy.deepcopy(valid)}
    for _ in range(draw(st.integers(1, 3))):
        node: Any = tree
        key: Any = ""
        while True:
            below = node[key]
            keys = list(below) if isinstance(below, dict) else range(len(below)) if isinstance(below, list) else []
            if not keys or (node is not tree and draw(st.integers(0, 3)) == 0):
                break
            node, key = below, draw(st.sampled_from(keys))
        kind = draw(st.integers(0, 4))
        if kind == 0 and node is not tree:
            del node[key]
        elif kind == 1 and isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        elif kind == 2 and isinstance(node, dict) and node is not tree:
            node[draw(st.sampled_from(["", "x", "_target_", "int-keys", str(key) * 2]))] = node.pop(key)
        else:
            node[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
    return tree[""]


def one_line(error: Exception, *names: str) -> None:
    """Hold a user's error to its form: one line, which names the file or the key."""
    assert "\n" not in str(error), repr(str(error))
    assert any(name in str(error) for name in names) or not names, str(error)
