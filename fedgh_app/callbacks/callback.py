"""What a callback may hook into, and those of a run."""

from __future__ import annotations

from omegaconf import DictConfig

from fedgh_app.config.instantiation import instantiate
from fedgh_app.runs.history import Round
from fedgh_app.server.federation import Federation


class Callback:
    """Something done beside the rounds. A callback that has nothing to do in a run does nothing."""

    def after_round(self, federation: Federation, current: Round) -> None:
        """Called when a round's numbers are in, round 0 included; may add to them."""

    def close(self, federation: Federation, failure: str | None) -> None:
        """Called once at the end, with the reason where the run failed."""


def callbacks_of(config: DictConfig) -> list[Callback]:
    """Those that the config lists, in its order; UserError for one that cannot be built."""
    return [instantiate(node, "callbacks") for node in config.callbacks.values()]
