"""Who is asked to train: the clients of each round (or, in asynchronous mode, of each free place).

Whoever runs the rounds says which clients could be asked (`Candidate`) and how many it wants, and tells after each
training call what came back. Every draw is a function of the seed and of the selection's number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fedgh_app.errors import UserError
from strategies.randomness import generator

# Loss of the current model on the training data of each named client; who cannot answer is missing.
Ask = Callable[[Sequence[str]], Mapping[str, float]]


@dataclass(frozen=True)
class Candidate:
    """A client that could be asked to train.

    Attributes:
        name: its name.
        examples: n_k, its training examples.
        seconds: declared time of one training call, above 0.
    """

    name: str
    examples: int
    seconds: float


class Selection:
    """What every way to select has in common.

    Args:
        fraction: share of the clients that are selected, above 0 and at most 1.
        min_clients: but at least so many.
        seed: what every draw depends on, together with the selection's number.

    Attributes:
        report: what replies to training must hold beside, for `observe`.
    """

    report: tuple[str, ...] = ()

    def __init__(self, fraction: float, min_clients: int, seed: int) -> None:
        _check("fraction", fraction, "above 0 and at most 1", 0 < fraction <= 1)
        _check("min_clients", min_clients, "at least 1", min_clients >= 1)
        self.fraction = fraction
        self.min_clients = min_clients
        self.seed = seed

    def size(self, count: int) -> int:
        """How many of ``count`` clients are selected."""
        return min(count, max(self.min_clients, round(self.fraction * count)))

    def select(self, key: int, candidates: Sequence[Candidate], count: int, ask: Ask) -> list[str]:
        """Names of at most ``count`` of the ``candidates``, in the order of names.

        Where there are no more than ``count`` candidates all are taken, and nobody is asked.

        Args:
            key: number of this selection, counted from 1: the round.
            candidates: who could be asked to train, in any order.
            count: how many are wanted.
            ask: puts a question to clients, which costs them a pass over their data; see `Ask`.
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

    def state_dict(self) -> dict[str, Any]:
        """What is carried from one selection to the next, JSON-able."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state that `state_dict` returned."""


class Random(Selection):
    """Clients drawn uniformly (McMahan et al., "Communication-Efficient Learning of Deep Networks", AISTATS 2017)."""

    def __init__(self, fraction: float = 1.0, min_clients: int = 1, seed: int = 0) -> None:
        super().__init__(fraction, min_clients, seed)

    def pick(self, key: int, candidates: Sequence[Candidate], count: int, ask: Ask) -> list[str]:
        """Each candidate with the same probability."""
        return draw({candidate.name: 1.0 for candidate in candidates}, count, generator(self.seed, "select", key))


class PowerOfChoice(Selection):
    """Power-of-Choice (Cho, Wang and Joshi, "Client Selection in Federated Learning", 2020).

    d candidates are drawn without replacement with probability proportional to n_k; of these, the m with the highest
    loss under the current model are selected. The biased choice learns faster where clients differ, and costs d
    clients a pass over their training data in each round.

    Args:
        fraction: share of the clients that are selected: m of all.
        min_clients: but at least so many.
        candidates: d. Below m it counts as m, and then nobody need be asked. None: 2 m.
        seed: what the draw of the candidates depends on, together with the selection's number.
    """

    def __init__(
        self, fraction: float = 0.5, min_clients: int = 1, candidates: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(fraction, min_clients, seed)
        if candidates is not None:
            _check("candidates", candidates, "a whole number of at least 1, or null", isinstance(candidates, int))
            _check("candidates", candidates, "at least 1, or null", candidates >= 1)
        self.candidates = candidates

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
    and its list of clients picked too often are left out: federations of pose data count tens of clients.

    Args:
        fraction: share of the clients that are selected: K of all.
        min_clients: but at least so many.
        exploration: ε in the first round.
        exploration_decay: what ε is multiplied by from round to round.
        exploration_min: ε never falls below it.
        straggler_penalty: a. 0: slow clients are as good as others.
        preferred_percentile: T as a percentile of the candidates' times, 0 to 100. 100: nobody is too slow.
        cut_off: c.
        clip: quantile of U at which outliers are clipped.
        time: ``declared``: t_k is what the candidate declares, so that a seeded run repeats; ``measured``: the seconds
            of the client's last training call, once there was one.
        seed: what all draws depend on, together with the selection's number.
    """

    report = ("loss-rms",)

    def __init__(
        self,
        fraction: float = 0.5,
        min_clients: int = 1,
        exploration: float = 0.9,
        exploration_decay: float = 0.98,
        exploration_min: float = 0.2,
        straggler_penalty: float = 2.0,
        preferred_percentile: float = 30.0,
        cut_off: float = 0.95,
        clip: float = 0.95,
        time: Literal["declared", "measured"] = "declared",
        seed: int = 0,
    ) -> None:
        super().__init__(fraction, min_clients, seed)
        shares = {"exploration": exploration, "exploration_decay": exploration_decay, "cut_off": cut_off, "clip": clip}
        for name, value in {**shares, "exploration_min": exploration_min}.items():
            _check(name, value, "0 to 1", 0 <= value <= 1)
        _check("straggler_penalty", straggler_penalty, "at least 0", straggler_penalty >= 0)
        _check("preferred_percentile", preferred_percentile, "0 to 100", 0 <= preferred_percentile <= 100)
        _check("time", time, "declared or measured", time in ("declared", "measured"))
        self.exploration = exploration
        self.exploration_decay = exploration_decay
        self.exploration_min = exploration_min
        self.straggler_penalty = straggler_penalty
        self.preferred_percentile = preferred_percentile
        self.cut_off = cut_off
        self.clip = clip
        self.time = time
        self._seen: dict[str, dict[str, float]] = {}

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

    def state_dict(self) -> dict[str, Any]:
        """What is known of each client."""
        return {"clients": {name: dict(seen) for name, seen in sorted(self._seen.items())}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
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


def _check(name: str, value: Any, expected: str, holds: bool) -> None:
    if not holds:
        raise UserError(f"selection.{name}={value}: expected {expected}")
