"""What the rest of the app asks of a config's choices; each answers by what its file says of it."""

from __future__ import annotations

from omegaconf import DictConfig


def is_central(config: DictConfig) -> bool:
    """Whether the server of such a run holds one whole model: nothing stays on the clients, and all share one."""
    return keeps_nothing(config) and config.clustering.name == "none"


def fedbn(config: DictConfig) -> bool:
    """Whether BatchNorm stays on the clients."""
    return bool(config.sharing.get("keeps") == "batch_norm")


def keeps_nothing(config: DictConfig) -> bool:
    """Whether clients send all of their model (``sharing=all``)."""
    return bool(config.sharing.get("keeps") == "nothing")
