"""Updates far longer than those of the other clients, which no honest training explains."""

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedgh_app.grids.reply_checks import Norms
from fedgh_app.server.parts.part import Part
from strategies.fedavg import State

RECENT = 32  # norms of accepted updates that are kept
FEWEST = 3  # among two lengths nobody can say which is the odd one


@dataclass(eq=False)
class Outliers(Part):
    """Rejects updates whose norm is above ``factor`` times the median of what they are compared with.

    They are compared with each other where there are three or more, as in a synchronous round; fewer, and single ones
    that arrive asynchronously, with the updates that were accepted last and with each other. Parameters and the running
    statistics of normalisation layers are compared separately: the latter may be thousands of times longer, and an odd
    update of the weights would drown in them. Integer buffers do not count. A median of 0 says nothing.
    """

    factor: float  # above 1; infinity: no update is too long
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=RECENT), init=False)

    def reject(self, norms: Mapping[str, Norms]) -> dict[str, str]:
        """Why updates are not to be used, by their key; the others are remembered as accepted."""
        pairs = {key: (norm.parameters, norm.statistics) for key, norm in norms.items()}
        others = list(pairs.values()) if len(pairs) >= FEWEST else [*self.recent, *pairs.values()]
        reasons = {key: reason for key, pair in pairs.items() if (reason := self._reason(pair, others))}
        self.recent.extend(p for key, p in pairs.items() if key not in reasons and all(map(math.isfinite, p)))
        return reasons

    def _reason(self, pair: tuple[float, float], others: Sequence[tuple[float, float]]) -> str | None:
        if len(others) < FEWEST or math.isinf(self.factor):
            return None
        for place, name in enumerate(("update", "running statistics")):
            median = statistics.median(other[place] for other in others)
            if median > 0 and pair[place] > self.factor * median:
                return (
                    f"{name} of norm {pair[place]:.3g}; expected at most {self.factor:g} times the median, {median:.3g}"
                )
        return None

    def state_dict(self) -> State:
        """The norms of the updates accepted last."""
        return {"recent": [list(pair) for pair in self.recent]}

    def load_state_dict(self, state: State) -> None:
        """Take up the norms."""
        self.recent = deque(((float(one), float(two)) for one, two in state["recent"]), maxlen=RECENT)
