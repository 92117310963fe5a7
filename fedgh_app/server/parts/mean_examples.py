"""The server's half of ``objective=dyn`` beside the strategy's: by what a client counts."""

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord

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
            mean = np.mean([client.examples for client in federation.clients.values()])
            self.records = {MEAN_EXAMPLES: ArrayRecord({MEAN_EXAMPLES: Array(np.asarray(mean))})}

    def message_records(self) -> Mapping[str, ArrayRecord]:
        """``mean_examples``: n̄, one number."""
        return self.records
