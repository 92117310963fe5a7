"""Randomness as a function of (seed, round, client name, purpose): nobody carries generator state.

A run then does not depend on which client answered first, and a resumed run draws what it would have drawn.
"""

import hashlib
import json

import torch


def derive_seed(seed: int, *keys: str | int) -> int:
    """Return a 63-bit seed that depends on ``seed`` and every key, and is the same on all machines.

    Keys are told apart by type and position: ``("a", "bc")``, ``("ab", "c")`` and ``1``, ``"1"`` all differ.
    """
    digest = hashlib.sha256(json.dumps([seed, *keys]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *keys: str | int) -> torch.Generator:
    """Return a CPU generator seeded with :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *keys))
