"""The noise that a client adds to its own update, and what its site demands of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from fedgh_app.errors import RunFailed, UserError
from strategies.gaussian import GaussianMechanism

# Node config of a site: it trains only where its own update gets at least this noise multiplier before it is sent.
DEMAND = "noise-multiplier"


def mechanism(config: DictConfig) -> GaussianMechanism | None:
    """What clips a client's own update and adds noise to it; None without ``privacy=local``."""
    if config.privacy.name != "local":
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
