import subprocess
import sys

import torch

from strategies.randomness import derive_seed, generator


def test_seeds_are_the_same_in_every_process():
    code = "from strategies.randomness import derive_seed; print(derive_seed(7, 'order', 3, 'lab'))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(told) == derive_seed(7, "order", 3, "lab")


def test_every_key_counts_with_its_type_and_place():
    keys = [(), ("a",), ("a", "b"), ("b", "a"), ("ab",), (1,), ("1",), (1, 2), (12,)]
    seeds = {derive_seed(seed, *key) for seed in (0, 1) for key in keys}
    assert len(seeds) == 2 * len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_repeat():
    assert torch.equal(torch.rand(3, generator=generator(1, "x")), torch.rand(3, generator=generator(1, "x")))
    assert not torch.equal(torch.rand(3, generator=generator(1, "x")), torch.rand(3, generator=generator(2, "x")))
