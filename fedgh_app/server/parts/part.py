"""The hooks by which an axis takes part in a round."""

from collections.abc import Mapping, Sequence

from flwr.app import ArrayRecord

from fedgh_app.grids.reply_checks import Norms
from fedgh_app.runs.history import Round
from fedgh_app.server.federation import Federation, Stateful, Update


class Part(Stateful):
    """What one axis adds to a round. The round calls every hook of every part, in their order, and knows none by name;
    a part says only what it adds.
    """

    def join(self, federation: Federation) -> None:
        """Called once the clients are known, before the first round; the place to keep what the hooks need of it."""

    def before_training(self, names: Sequence[str]) -> None:
        """Called before the named clients are asked to train."""

    def message_records(self) -> Mapping[str, ArrayRecord]:
        """What every training message holds beside model and config, by its name on the wire; finite after a round."""
        return {}

    def reject(self, norms: Mapping[str, Norms]) -> dict[str, str]:
        """Why updates that arrived together are not to be used, by their key; no part before has rejected them."""
        return {}

    def after_aggregation(
        self, current: Round, base: ArrayRecord, proposed: ArrayRecord, updates: Sequence[Update], cohort: str
    ) -> ArrayRecord:
        """The next model of a cohort, given what the strategy proposes.

        Args:
            current: the round.
            base: the model that the updates count from.
            proposed: the strategy's, or what the part before made of it.
            updates: in the order of names; one at least.
            cohort: whose model it is.
        """
        return proposed

    def note(self, current: Round) -> None:
        """Called at the end of each round, round 0 included, to note on it what others may want to know."""
