"""``server_optimizer``: a step of an optimizer toward what the strategy proposes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord

from fedgh_app.server.parts.part import Part
from strategies.server_optimizer import ServerOptimizer

if TYPE_CHECKING:
    from fedgh_app.runs.history import Round
    from fedgh_app.server.federation import Update


class ServerOptimizerPart(Part):
    """Takes the optimizer's step in place of the strategy's.

    Args:
        optimizer: not yet begun.
    """

    def __init__(self, optimizer: ServerOptimizer) -> None:
        self.optimizer = optimizer

    def after_aggregation(
        self, current: Round, base: ArrayRecord, proposed: ArrayRecord, updates: Sequence[Update], cohort: str
    ) -> ArrayRecord:
        """The model one step from ``base``."""
        with current.timed("aggregate"):
            return self.optimizer.step(base, proposed)

    def state_dict(self) -> dict[str, Any]:
        """What the optimizer remembers of each tensor."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what it remembered."""
        self.optimizer.load_state_dict(state)
