"""What the model is, for whoever finds it."""

from fedgh_app import model_card
from fedgh_app.callbacks.callback import Callback
from fedgh_app.model_card.facts import Facts
from fedgh_app.server.federation import Federation
from fedgh_app.server.result import result_of


class ModelCard(Callback):
    """Writes ``MODEL_CARD.md`` at the end, also of a run that failed."""

    def close(self, federation: Federation, failure: str | None) -> None:
        """Write what is known by then."""
        specs = {name: data.spec for name, data in federation.data.sets.items()}
        model_card.write(
            Facts(
                federation.directory,
                federation.values,
                result_of(federation),
                specs,
                federation.task.card(federation.values, specs),
                federation.history,
                failure,
            )
        )
