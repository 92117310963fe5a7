"""Differential privacy of a run: which noise it adds, where, and what each client has spent of its privacy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Array
from omegaconf import DictConfig

from fedgh_app.errors import RunFailed, UserError
from fedgh_app.runs.records import PRIVACY, PrivacyAccount
from strategies.gaussian import GaussianMechanism
from strategies.updates import parameters_of

# Node config of a site: it trains only where its own update gets at least this noise multiplier before it is sent.
DEMAND = "noise-multiplier"


def mechanism(config: DictConfig, where: str) -> GaussianMechanism | None:
    """What clips and adds noise ``where``, ``central`` or ``local``; None where this run does not do it there."""
    if config.privacy.name != where:
        return None
    return GaussianMechanism(config.privacy.clipping_norm, config.privacy.noise_multiplier)


def check_demand(config: DictConfig, node_config: Mapping[str, Any]) -> None:
    """Refuse (RunFailed) to train where a site's node config demands more noise than the run's config promises.

    Raises UserError where what it demands is no number.
    """
    demanded = node_config.get(DEMAND)
    if demanded is None:
        return
    if not isinstance(demanded, int | float):
        raise UserError(f"{DEMAND}={demanded}: expected a number, in the site's node config")
    found = float(config.privacy.noise_multiplier) if config.privacy.name == "local" else 0.0
    if not found >= demanded:
        raise RunFailed(
            f"privacy={config.privacy.name}: updates of this site get a noise multiplier of {found:g}; its node "
            f"config expects at least {DEMAND}={demanded:g} with privacy=local"
        )


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


class Account:
    """How often each client's update was asked for, and the ε that this comes to.

    It is written before clients are asked: what a killed round released stays spent when the run is resumed and does
    the round again, with other noise.

    Args:
        config: the run's.
        directory: the run directory, whose ``privacy.json`` keeps the account; what stands there already is spent.
    """

    def __init__(self, config: DictConfig, directory: Path) -> None:
        # Two updates of a client lie up to 2 C apart, which is what its own noise has to hide. The mean's noise hides
        # whether the client's update, of length C, is in it.
        self.multiplier = config.privacy.noise_multiplier / (2 if config.privacy.name == "local" else 1)
        self.delta = float(config.privacy.delta)
        self.directory = directory
        self.asked: Counter[str] = Counter()
        if (directory / PRIVACY).exists():
            self._take(PrivacyAccount.read(directory).asked)

    def spend(self, clients: Iterable[str]) -> None:
        """Note, in the file first, that these clients are about to be asked for an update."""
        self.asked.update(clients)
        account = {**self.spent(), "asked": dict(sorted(self.asked.items()))}
        PrivacyAccount.model_validate(account).write(self.directory)

    def spent(self) -> dict[str, float | int]:
        """``epsilon`` of the client asked most often and its number of ``releases``; ``epsilon_round`` of one release
        alone; ``delta``.
        """
        releases = max(self.asked.values(), default=0)
        return {
            "epsilon": epsilon(self.multiplier, releases, self.delta),
            "epsilon_round": epsilon(self.multiplier, 1, self.delta),
            "delta": self.delta,
            "releases": releases,
        }

    def state_dict(self) -> dict[str, Any]:
        """How often each client was asked."""
        return {"asked": dict(self.asked)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the counts, but none below what the file says: rounds that were lost are spent."""
        self._take(state["asked"])

    def _take(self, asked: Mapping[str, int]) -> None:
        self.asked |= Counter({client: int(count) for client, count in asked.items()})
