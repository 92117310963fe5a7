"""What each method converges to, on a federation whose minimum is known."""

from __future__ import annotations

import pytest
import torch
from quadratics import Quadratics, federate

from fedgh_app.vision.objectives import Dyn, Plain, Scaffold
from strategies import FedAvg, FedDyn

UNEQUAL = Quadratics()
TARGETS = {"examples": UNEQUAL.by_examples, "clients": UNEQUAL.by_clients}


def distance(w: torch.Tensor, counts: str) -> float:
    return torch.linalg.vector_norm(w - TARGETS[counts]).item()


def test_fedavg_misses_the_minimum() -> None:
    # Each client goes all the way to its own minimum: the mean of minima is not the minimum of the mean.
    assert distance(federate(UNEQUAL, FedAvg(), Plain(), rounds=5), "examples") > 1.0
    assert distance(TARGETS["clients"], "examples") > 1.0


def test_fedavg_of_single_steps_reaches_it() -> None:
    assert distance(federate(UNEQUAL, FedAvg(), Plain(), rounds=300, steps=1, rate=0.5), "examples") < 1e-7


@pytest.mark.parametrize("counts", ["examples", "clients"])
@pytest.mark.parametrize("taking_part", [None, 2])
def test_feddyn_reaches_the_minimum(counts: str, taking_part: int | None) -> None:
    strategy = FedDyn(alpha=1.0, num_registered=len(UNEQUAL.examples))
    found = federate(UNEQUAL, strategy, Dyn(1.0), rounds=120, counts=counts, taking_part=taking_part)
    assert distance(found, counts) < 1e-7


@pytest.mark.parametrize("counts", ["examples", "clients"])
@pytest.mark.parametrize("taking_part", [None, 2])
def test_scaffold_reaches_the_minimum(counts: str, taking_part: int | None) -> None:
    strategy = FedAvg(equal_weights=counts == "clients")
    found = federate(UNEQUAL, strategy, Scaffold(), rounds=120, counts=counts, steps=3, taking_part=taking_part)
    assert distance(found, counts) < 1e-7


def test_feddyn_reaches_the_minimum_with_clipped_updates() -> None:
    # What a client with privacy=local releases is what both halves of the method remember.
    strategy = FedDyn(alpha=1.0, num_registered=len(UNEQUAL.examples))
    found = federate(UNEQUAL, strategy, Dyn(1.0), rounds=300, longest=1.0)
    assert distance(found, "examples") < 1e-7
