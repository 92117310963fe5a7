"""``server_optimizer``: a step of an optimizer toward what the strategy proposes."""

from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord

from fedgh_app.runs.history import Round
from fedgh_app.server.federation import Update
from fedgh_app.server.parts.part import Part
from strategies.fedavg import State
from strategies.server_optimizer import ServerOptimizer


@dataclass(eq=False)
class ServerOptimizerPart(Part):
    """Takes the optimizer's step in place of the strategy's."""

    optimizer: ServerOptimizer  # not yet begun

    def after_aggregation(
        self, current: Round, base: ArrayRecord, proposed: ArrayRecord, updates: Sequence[Update], cohort: str
    ) -> ArrayRecord:
        """The model one step from ``base``."""
        with current.timed("aggregate"):
            return self.optimizer.step(base, proposed)

    def state_dict(self) -> State:
        """What the optimizer remembers of each tensor."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Take up what it remembered."""
        self.optimizer.load_state_dict(state)
