"""Learning-rate schedules over the rounds of a federation.

A client's optimizer starts afresh each round, so a schedule is no optimizer wrapper but a function: the
round, 1 ... ``rounds``, gives the factor by which that round's learning rate is multiplied.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedgh_app.errors import UserError

# A round, counted from 1, and how many there are, to the factor on the learning rate.
Schedule = Callable[[int, int], float]


@dataclass(frozen=True)
class Constant:
    """The same learning rate in every round."""

    def __call__(self, round: int, rounds: int) -> float:
        """1."""
        _check(round)
        return 1.0


@dataclass(frozen=True)
class Step:
    """Multiply by ``gamma`` after each milestone (Xiao et al., ECCV 2018, section 3: 90 and 120 of 140).

    ``milestones`` are the last rounds before a drop; one below 1 is a fraction of all rounds.
    """

    milestones: Sequence[float] = (0.64, 0.86)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        # A tuple, since a list from a config file would make the schedule unhashable and not quite frozen.
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if any(not milestone > 0 for milestone in self.milestones):
            raise UserError(f"schedule.milestones: found {list(self.milestones)}, expected numbers above 0")
        if not self.gamma > 0:
            raise UserError(f"schedule.gamma: found {self.gamma!r}, expected a number above 0")

    def __call__(self, round: int, rounds: int) -> float:
        """``gamma`` to the power of the number of milestones that lie before ``round``."""
        _check(round)
        last_rounds = (m * rounds if m < 1 else m for m in self.milestones)
        return float(self.gamma ** sum(round > last for last in last_rounds))


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 down to ``final_fraction`` in the last round (Loshchilov and Hutter, ICLR 2017).

    Args:
        final_fraction: the last round's factor, 0 to 1.
        warmup_rounds: rounds in which the factor first rises in equal steps; the round after them has 1.
    """

    final_fraction: float = 0.1
    warmup_rounds: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.final_fraction <= 1:
            raise UserError(f"schedule.final_fraction: found {self.final_fraction!r}, expected 0 to 1")
        if self.warmup_rounds < 0:
            raise UserError(f"schedule.warmup_rounds: found {self.warmup_rounds!r}, expected 0 or more")

    def __call__(self, round: int, rounds: int) -> float:
        """The factor of ``round``; after the last round it stays what it was there."""
        _check(round)
        if round <= self.warmup_rounds:
            return round / (self.warmup_rounds + 1)
        falling = rounds - self.warmup_rounds - 1
        progress = min((round - self.warmup_rounds - 1) / falling, 1.0) if falling > 0 else 0.0
        return self.final_fraction + (1 - self.final_fraction) * (1 + math.cos(math.pi * progress)) / 2


def _check(round: int) -> None:
    if round < 1:
        raise ValueError(f"found round {round}, expected 1 or more: rounds are counted from 1")
