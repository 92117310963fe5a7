"""A line of each round in Flower's log."""

from logging import INFO

from flwr.common.logger import log

from fedgh_app.runs.history import Round
from fedgh_app.server.callback import Callback
from fedgh_app.server.federation import Federation


class Progress(Callback):
    """Says each round in Flower's log."""

    def after_round(self, federation: Federation, current: Round) -> None:
        """One line."""
        numbers = {
            "loss": current.train.get("loss"),
            federation.data.headline: current.evaluate.headline.score,
            "seconds": current.seconds.get("total"),
            "epsilon": current.privacy.get("epsilon"),
        }
        said = ", ".join(f"{name} {value:.3f}" for name, value in numbers.items() if value is not None)
        log(INFO, "round %d/%d: %s", current.round, federation.settings.rounds, said)
