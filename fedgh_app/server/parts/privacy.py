"""``privacy``: what each client has spent of its privacy, the arithmetic of ε, and the noise that the server adds."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from flwr.app import Array

from fedgh_app.errors import UserError
from fedgh_app.runs.history import Round
from fedgh_app.runs.records import PRIVACY, PrivacyAccount
from fedgh_app.server.federation import Federation
from fedgh_app.server.parts.part import Part
from strategies.fedavg import State
from strategies.gaussian import GaussianMechanism
from strategies.updates import parameters_of


class Privacy(Part):
    """How often each client's update was asked for, and the ε that this comes to. With ``central`` noise the strategy
    is given the mechanism that clips and adds it.

    The account is written before clients are asked: what a killed round released stays spent when the run is resumed
    and does the round again, with other noise.

    Args:
        name: who adds noise: the server (``central``), or every client (``local``).
        clipping_norm: C, the longest that an update is before noise.
        noise_multiplier: z, the noise's standard deviation over C.
        delta: δ at which ε is told.
    """

    def __init__(
        self, name: Literal["central", "local"], clipping_norm: float, noise_multiplier: float, delta: float
    ) -> None:
        self.mechanism = GaussianMechanism(clipping_norm, noise_multiplier) if name == "central" else None
        # Two updates of a client lie up to 2 C apart, which is what its own noise has to hide. The mean's noise hides
        # whether the client's update, of length C, is in it.
        self.multiplier = noise_multiplier / (2 if name == "local" else 1)
        self.delta = float(delta)
        self.asked: Counter[str] = Counter()

    def join(self, federation: Federation) -> None:
        """Open the account, which holds what an earlier session spent, and give the strategy its mechanism."""
        check_shared(federation.initial)
        self.open(federation.directory)
        if self.mechanism is not None:
            federation.strategy.mechanism = self.mechanism
            federation.strategy.expected = federation.selection.size(len(federation.clients))

    def open(self, directory: Path) -> None:
        """Keep the account in the ``privacy.json`` of a run directory; what stands there already is spent."""
        self.directory = directory
        if (directory / PRIVACY).exists():
            self._take(PrivacyAccount.read(directory).asked)

    def before_training(self, names: Sequence[str]) -> None:
        """Note, in the file first, that these clients are about to be asked for an update."""
        self.asked.update(names)
        PrivacyAccount(**self.spent(), asked=dict(sorted(self.asked.items()))).write(self.directory)

    def note(self, current: Round) -> None:
        """What is spent by now."""
        current.privacy = self.spent()

    def spent(self) -> dict[str, Any]:
        """``epsilon`` of the client asked most often, its ``releases``, ``epsilon_round`` of one of them; ``delta``."""
        releases = max(self.asked.values(), default=0)
        return {
            "epsilon": epsilon(self.multiplier, releases, self.delta),
            "epsilon_round": epsilon(self.multiplier, 1, self.delta),
            "delta": self.delta,
            "releases": releases,
        }

    def state_dict(self) -> State:
        """How often each client was asked."""
        return {"asked": dict(self.asked)}

    def load_state_dict(self, state: State) -> None:
        """Take up the counts, but none below what the file says: rounds that were lost are spent."""
        self._take(state["asked"])

    def _take(self, asked: Mapping[str, int]) -> None:
        self.asked |= Counter({client: int(count) for client, count in asked.items()})


def check_shared(shared: Mapping[str, Array]) -> None:
    """Refuse (UserError) to share with noise what is no parameter: running statistics, counters."""
    if others := shared.keys() - set(parameters_of(shared)):
        raise UserError(
            f"privacy: {min(others)} would be shared, to which noise means nothing; expected a model without running "
            "statistics (model.norm=group), or sharing=fedbn"
        )


def epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """The ε of ``releases`` Gaussian mechanisms, one after the other, at ``delta``; exact, not a bound.

    Together they are one Gaussian mechanism of sensitivity μ = √T / z (Dong, Roth and Su, "Gaussian Differential
    Privacy", 2022, corollary 2), whose δ(ε) Balle and Wang give ("Improving the Gaussian Mechanism for Differential
    Privacy", ICML 2018, theorem 8): Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ). Each may depend on what those before have
    shown. No sampling of clients is counted in favour: who trains is a function of the seed, which is no secret.

    Args:
        noise_multiplier: z, the noise's standard deviation over the sensitivity of one release.
        releases: T, at least 0.
        delta: between 0 and 1.
    """
    from scipy.optimize import brentq  # which no client needs
    from scipy.special import log_ndtr

    if releases == 0:
        return 0.0
    mu = math.sqrt(releases) / noise_multiplier

    def excess(eps: float) -> float:
        """log δ(eps) - log delta."""
        first, second = log_ndtr(mu / 2 - eps / mu), log_ndtr(-mu / 2 - eps / mu)
        left = -math.expm1(min(eps + second - first, 0.0))
        return float(first + math.log(left) - math.log(delta)) if left > 0 else -math.inf

    if excess(0.0) <= 0:
        return 0.0
    # Above the ε of concentrated differential privacy (Bun and Steinke 2016, proposition 1.3).
    bound = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    return float(brentq(lambda eps: max(excess(eps), -1e3), 0.0, bound))
