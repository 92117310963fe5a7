"""The server's half of ``objective=scaffold``."""

from collections.abc import Mapping, Sequence

from flwr.app import ArrayRecord

from fedgh_app.runs.history import Round
from fedgh_app.server.aggregation import replies_of
from fedgh_app.server.federation import Federation, Update
from fedgh_app.server.parts.part import Part
from strategies.fedavg import State
from strategies.scaffold import ControlVariate


class ControlVariatePart(Part):
    """Sends SCAFFOLD's control variate to every client that trains, and moves it by what came back."""

    def join(self, federation: Federation) -> None:
        """Begin at zero."""
        self.federation = federation
        self.control = ControlVariate(federation.initial, len(federation.clients))

    def message_records(self) -> Mapping[str, ArrayRecord]:
        """``control``: c, one array for each parameter."""
        return {"control": self.control.arrays}

    def after_aggregation(
        self, current: Round, base: ArrayRecord, proposed: ArrayRecord, updates: Sequence[Update], cohort: str
    ) -> ArrayRecord:
        """The model as proposed, with c moved by the updates that led to it."""
        with current.timed("aggregate"):
            # What clients were to train with: no client's word moves the control of all.
            rate = self.federation.learning_rate * self.federation.schedule(current.round)
            self.control.absorb(base, replies_of(updates, base), [rate] * len(updates))
        return proposed

    def state_dict(self) -> State:
        """c by tensor."""
        return self.control.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Take up c."""
        self.control.load_state_dict(state)
