"""The server's half of ``objective=dyn`` beside the strategy's: by what a client counts."""

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord

from fedgh_app.errors import UserError
from fedgh_app.server.federation import Federation
from fedgh_app.server.parts.part import Part
from fedgh_app.vision.objectives import MEAN_EXAMPLES


class MeanExamples(Part):
    """Sends every client that trains the mean number of training examples of all clients, so that each knows by how
    much it counts more or less than another; nothing with ``objective.counts=clients``, for which all count the same.
    """

    def join(self, federation: Federation) -> None:
        """Take the mean, over who takes part and who does not."""
        self.records: dict[str, ArrayRecord] = {}
        if federation.values["objective"]["counts"] == "examples":
            sizes = {name: client.examples for name, client in federation.clients.items()}
            mean, smallest = np.mean(list(sizes.values())), min(sizes, key=lambda name: sizes[name])
            held = federation.values["objective"]["alpha"] * mean / sizes[smallest]
            if federation.learning_rate * held > 1:  # steps of gradient descent would swing further each time
                raise UserError(
                    f"strategy.alpha={federation.values['objective']['alpha']}: client {smallest} with "
                    f"{sizes[smallest]} examples would be held by alpha n̄ / n_k = {held:.3g}, too much for the learning "
                    f"rate {federation.learning_rate:g}; expected a product of at most 1, or objective.counts=clients"
                )
            self.records = {MEAN_EXAMPLES: ArrayRecord({MEAN_EXAMPLES: Array(np.asarray(mean))})}

    def message_records(self) -> Mapping[str, ArrayRecord]:
        """``mean_examples``: n̄, one number."""
        return self.records
