"""What the model is, for whoever finds it."""

from __future__ import annotations

from fedgh_app import model_card
from fedgh_app.callbacks.callback import Callback
from fedgh_app.runs import storage
from fedgh_app.server.federation import Federation
from fedgh_app.server.result import result_of


class ModelCard(Callback):
    """Writes ``MODEL_CARD.md`` at the end, also of a run that failed."""

    def close(self, federation: Federation, failure: str | None) -> None:
        """Write what is known by then."""
        result = storage.plain(result_of(federation))
        model_card.write(federation.directory, federation.config, result, federation.history, failure)
