"""What a callback may hook into."""

from fedgh_app.runs.history import Round
from fedgh_app.server.federation import Federation


class Callback:
    """Something done beside the rounds. A callback that has nothing to do in a run does nothing."""

    def after_round(self, federation: Federation, current: Round) -> None:
        """Called when a round's numbers are in, round 0 included; may add to them."""

    def close(self, federation: Federation, failure: str | None) -> None:
        """Called once at the end, with the reason where the run failed."""
