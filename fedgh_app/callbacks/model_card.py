"""What the model is, for whoever finds it."""

from fedgh_app import model_card
from fedgh_app.model_card.facts import Facts
from fedgh_app.server.callback import Callback
from fedgh_app.server.federation import Federation
from fedgh_app.server.persistence import result_of


class ModelCard(Callback):
    """Writes ``MODEL_CARD.md`` at the end, also of a run that failed."""

    def close(self, federation: Federation, failure: str | None) -> None:
        """Write what is known by then."""
        specs = {name: data.spec for name, data in federation.data.sets.items()}
        card, result = federation.task.card(federation.values, specs), result_of(federation)
        facts = Facts(federation.directory, federation.values, result, specs, card, federation.history, failure)
        model_card.write(facts)
