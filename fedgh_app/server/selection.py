"""Who is asked to train: the clients of each round (or, in asynchronous mode, of each free place).

Whoever runs the rounds says which clients could be asked (`Candidate`) and how many it wants, and tells after each
training call what came back. Every draw is a function of the seed and of the selection's number.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar, Literal

import torch

from fedgh_app.errors import UserError
from fedgh_app.server.federation import Stateful
from strategies.fedavg import State
from strategies.randomness import generator

# Loss of the current model on the training data of each named client; who cannot answer is missing.
Ask = Callable[[Sequence[str]], Mapping[str, float]]


@dataclass(frozen=True)
class Candidate:
    """A client that could be asked to train."""

    name: str
    examples: int  # n_k, for training
    seconds: float  # declared time of one training call, above 0


@dataclass(eq=False)
class Selection(Stateful):
    """What every way to select has in common."""

    report: ClassVar[tuple[str, ...]] = ()  # what replies to training must hold beside, for `observe`

    fraction: float = 1.0  # share of the clients that are selected, above 0 and at most 1
    min_clients: int = 1  # but at least so many
    _: KW_ONLY
    seed: int = 0  # what every draw depends on, together with the selection's number

    def __post_init__(self) -> None:
        _check("fraction", self.fraction, "above 0 and at most 1", 0 < self.fraction <= 1)
        _check("min_clients", self.min_clients, "at least 1", self.min_clients >= 1)

    def size(self, count: int) -> int:
        """How many of ``count`` clients are selected."""
        return min(count, max(self.min_clients, round(self.fraction * count)))

    def select(self, key: int, candidates: Sequence[Candidate], count: int, ask: Ask) -> list[str]:
        """Names of at most ``count`` of the ``candidates``, in the order of names.

        Where there are no more than ``count`` candidates all are taken, and nobody is asked.

        Args:
            key: number of this selection, counted from 1: the round.
            ask: puts a question to clients, which costs them a pass over their data.
        """
        by_name = sorted(candidates, key=lambda candidate: candidate.name)
        if count >= len(by_name):
            return [candidate.name for candidate in by_name]
        return sorted(self.pick(key, by_name, count, ask))

    def pick(self, key: int, candidates: Sequence[Candidate], count: int, ask: Ask) -> list[str]:
        """Names of ``count`` of more than ``count`` candidates, which come in the order of names."""
        raise NotImplementedError

    def observe(self, key: int, client: str, metrics: Mapping[str, float]) -> None:
        """Take in what ``client`` reported of a training call, ``key`` being the number of the latest selection."""


class Random(Selection):
    """Clients drawn uniformly (McMahan et al., "Communication-Efficient Learning of Deep Networks", AISTATS 2017)."""

    def pick(self, key: int, candidates: Sequence[Candidate], count: int, ask: Ask) -> list[str]:
        """Each candidate with the same probability."""
        return draw({candidate.name: 1.0 for candidate in candidates}, count, generator(self.seed, "select", key))


@dataclass(eq=False)
class PowerOfChoice(Selection):
    """Power-of-Choice (Cho, Wang and Joshi, "Client Selection in Federated Learning", 2020).

    d candidates are drawn without replacement with probability proportional to n_k; of these, the m with the highest
    loss under the current model are selected. The biased choice learns faster where clients differ, and costs d
    clients a pass over their training data in each round.
    """

    fraction: float = 0.5  # share of the clients that are selected: m of all
    candidates: int | None = None  # d. Below m it counts as m, and then nobody need be asked. None: 2 m

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates is not None:
            whole = isinstance(self.candidates, int) and self.candidates >= 1
            _check("candidates", self.candidates, "a whole number of at least 1, or null", whole)

    def pick(self, key: int, candidates: Sequence[Candidate], count: int, ask: Ask) -> list[str]:
        """Who has most to learn among those drawn. Who cannot say its loss is not selected: it could not train."""
        drawn = draw(
            {candidate.name: float(candidate.examples) for candidate in candidates},
            max(count, 2 * count if self.candidates is None else self.candidates),
            generator(self.seed, "select", key),
        )
        if len(drawn) == count:
            return drawn
        losses = ask(sorted(drawn))
        return sorted(losses, key=lambda name: (-losses[name], name))[:count]


@dataclass(eq=False)
class Oort(Selection):
    """Oort (Lai et al., "Oort: Efficient Federated Learning via Guided Participant Selection", OSDI 2021), Algorithm 1.

    A client k that has trained before has the utility

        (U_k + sqrt(0.1 log R / L_k)) · (T / t_k)^a,    U_k = |B_k| sqrt(Σ loss² / |B_k|),

    with R the number of this selection and L_k that of its last one, so that old knowledge gains weight. The last
    factor holds only for clients slower than the preferred time T. Of a round's K places, ε K go to clients that never
    trained, drawn in proportion to their speed; the others to clients drawn in proportion to their utility among those
    of at least c times the utility of the last place. ε decays from round to round. Places that one side cannot fill
    go to the other.

    Where the paper is silent we read the authors' code: U is clipped at a high quantile, against outliers, and brought
    to [0, 1] among the candidates, since the bonus for old knowledge is of that order; T is the percentile
    ``preferred_percentile`` of the candidates' times. The paper's pacer, which relaxes T once utility stops growing,
    and its list of clients picked too often are left out: federations of sites count tens of clients.
    """

    report: ClassVar[tuple[str, ...]] = ("loss-rms",)

    fraction: float = 0.5  # share of the clients that are selected: K of all
    exploration: float = 0.9  # ε in the first round
    exploration_decay: float = 0.98  # what ε is multiplied by from round to round
    exploration_min: float = 0.2  # ε never falls below it
    straggler_penalty: float = 2.0  # a. 0: slow clients are as good as others
    preferred_percentile: float = 30.0  # T as one of the candidates' times, 0 to 100. 100: nobody is too slow
    cut_off: float = 0.95  # c
    clip: float = 0.95  # quantile of U at which outliers are clipped
    # t_k is what the candidate declares, so that a seeded run repeats, or the seconds of its last training call.
    time: Literal["declared", "measured"] = "declared"
    _seen: dict[str, dict[str, float]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("exploration", "exploration_decay", "cut_off", "clip", "exploration_min"):
            _check(name, getattr(self, name), "0 to 1", 0 <= getattr(self, name) <= 1)
        _check("straggler_penalty", self.straggler_penalty, "at least 0", self.straggler_penalty >= 0)
        _check("preferred_percentile", self.preferred_percentile, "0 to 100", 0 <= self.preferred_percentile <= 100)
        _check("time", self.time, "declared or measured", self.time in ("declared", "measured"))

    def pick(self, key: int, candidates: Sequence[Candidate], count: int, ask: Ask) -> list[str]:
        """ε of the places to who never trained, by speed; the others by utility."""
        unexplored = {
            candidate.name: 1 / candidate.seconds for candidate in candidates if candidate.name not in self._seen
        }
        utility = self.utilities(key, candidates)
        epsilon = max(self.exploration_min, self.exploration * self.exploration_decay ** (key - 1))
        # Rounded at random: with one place a round, a fixed rounding would explore always or never.
        explored = int(epsilon * count + torch.rand((), generator=generator(self.seed, "select", key, "places")).item())
        exploited = min(len(utility), max(count - explored, count - len(unexplored)))
        admitted = utility
        if exploited:
            last_place = sorted(utility.values(), reverse=True)[exploited - 1]
            admitted = {name: value for name, value in utility.items() if value >= self.cut_off * last_place}
        return [
            *draw(admitted, exploited, generator(self.seed, "select", key, "exploit")),
            *draw(unexplored, count - exploited, generator(self.seed, "select", key, "explore")),
        ]

    def utilities(self, key: int, candidates: Sequence[Candidate]) -> dict[str, float]:
        """Utility of each candidate that has trained before, in selection number ``key``."""
        seconds = {candidate.name: self._seconds(candidate) for candidate in candidates}
        preferred = _at(sorted(seconds.values()), self.preferred_percentile / 100)
        statistical = {name: self._seen[name]["utility"] for name in seconds if name in self._seen}
        if not statistical:
            return {}
        bound = _at(sorted(statistical.values()), self.clip)
        low = min(statistical.values())
        utilities = {}
        for name, value in statistical.items():
            share = (min(value, bound) - low) / (bound - low) if bound > low else 0.0
            bonus = math.sqrt(0.1 * math.log(key) / self._seen[name]["key"])
            slowness = max(1.0, seconds[name] / preferred)
            utilities[name] = (share + bonus) * slowness**-self.straggler_penalty
        return utilities

    def observe(self, key: int, client: str, metrics: Mapping[str, float]) -> None:
        """Keep the client's statistical utility |B| · root mean square loss, its time, and when that was."""
        self._seen[client] = {
            "utility": metrics["num-examples"] * metrics["loss-rms"],
            "seconds": metrics["seconds"],
            "key": key,
        }

    def state_dict(self) -> State:
        """What is known of each client."""
        return {"clients": {name: dict(seen) for name, seen in sorted(self._seen.items())}}

    def load_state_dict(self, state: State) -> None:
        """Take up what was known of each client."""
        self._seen = {name: dict(seen) for name, seen in state["clients"].items()}

    def _seconds(self, candidate: Candidate) -> float:
        if self.time == "measured" and candidate.name in self._seen:
            return self._seen[candidate.name]["seconds"]
        return candidate.seconds


def draw(weights: Mapping[str, float], count: int, source: torch.Generator) -> list[str]:
    """Draw ``count`` names, one after the other, each in proportion to its weight among those left.

    Exponential clocks that run at the speed of the weights ring in just that order (Efraimidis and Spirakis 2006).
    Names without weight come last, in random order.
    """
    clocks = torch.empty(len(weights), dtype=torch.float64).exponential_(generator=source).tolist()
    rings = {
        name: (clock / weight if weight > 0 else math.inf, clock)
        for (name, weight), clock in zip(weights.items(), clocks, strict=True)
    }
    return sorted(rings, key=lambda name: rings[name])[:count]


def _at(ordered: Sequence[float], quantile: float) -> float:
    """The value at a quantile of ordered values, itself one of them."""
    return ordered[min(int(quantile * len(ordered)), len(ordered) - 1)]


def _check(name: str, value: object, expected: str, holds: bool) -> None:
    if not holds:
        raise UserError(f"selection.{name}={value}: expected {expected}")
