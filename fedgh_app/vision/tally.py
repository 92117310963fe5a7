"""An evaluation as sums that add up: what one client reports, what the server adds over clients, what they come to."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field

# The bound of a sum that no other sum bounds: how many examples were tested.
EXAMPLES = "examples"


@dataclass(frozen=True)
class Tally:
    """What was counted in an evaluation, by part of what is predicted (a keypoint, a class) and by kind of sum."""

    sums: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __add__(self, other: Tally) -> Tally:
        """Both evaluations as one; parts that only one of them has are kept."""
        parts = dict.fromkeys([*self.sums, *other.sums])
        return Tally({part: _added(self.sums.get(part, {}), other.sums.get(part, {})) for part in parts})

    def as_scalars(self) -> dict[str, float]:
        """Every sum under ``<kind>/<part>``, as a message carries it."""
        return {f"{kind}/{part}": value for part, sums in self.sums.items() for kind, value in sums.items()}

    @classmethod
    def from_scalars(cls, scalars: Mapping[str, float], kinds: Container[str]) -> Tally:
        """Undo `as_scalars` for sums of these kinds; other keys are passed over."""
        sums: dict[str, dict[str, float]] = {}
        for key, value in scalars.items():
            kind, _, part = key.partition("/")
            if part and kind in kinds:
                sums.setdefault(part, {})[kind] = value
        return cls(sums)

    def fault(self, bounds: Mapping[str, str], examples: float) -> str | None:
        """Which sum no evaluation of so many examples gives, in one line; None where all are possible.

        ``bounds`` has of each kind the kind that it never exceeds, or `EXAMPLES`.
        """
        for part, sums in self.sums.items():
            for kind, bound in bounds.items():
                most = examples if bound == EXAMPLES else sums[bound]
                # What is summed in floating point may be a little above.
                if not 0 <= sums[kind] <= most + 1e-6 * examples * isinstance(sums[kind], float):
                    return f"{kind} of {part} is {sums[kind]}; expected 0 to {most:g}"
        return None


def _added(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {kind: one.get(kind, 0) + other.get(kind, 0) for kind in dict.fromkeys([*one, *other])}


@dataclass(frozen=True)
class Scores:
    """What a tally comes to; nan where there was nothing to measure.

    Attributes:
        score: the headline, 0 to 1.
        parts: the headline of each part: a keypoint, a class.
        more: further metrics of the task by name, 0 to 1.
        labelled: examples that counted for each part.
    """

    score: float = math.nan
    parts: Mapping[str, float] = field(default_factory=dict)
    more: Mapping[str, float] = field(default_factory=dict)
    labelled: Mapping[str, int] = field(default_factory=dict)
