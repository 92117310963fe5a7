"""The line of each round in ``history.jsonl``."""

from fedgh_app.runs.history import Round
from fedgh_app.server.callback import Callback
from fedgh_app.server.federation import Federation


class History(Callback):
    """Appends each round to ``history.jsonl``."""

    def after_round(self, federation: Federation, current: Round) -> None:
        """One line of JSON."""
        current.append(federation.directory)
