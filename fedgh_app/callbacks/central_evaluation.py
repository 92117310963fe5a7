"""The server's own evaluation."""

from __future__ import annotations

from torch import nn

from fedgh_app.callbacks.callback import Callback
from fedgh_app.config.instantiation import instantiate
from fedgh_app.data import site
from fedgh_app.pose.data.batches import Batches
from fedgh_app.pose.evaluation.tally import tally
from fedgh_app.pose.training import evaluate
from fedgh_app.runs.history import Measured, Round
from fedgh_app.server.federation import Federation


class CentralEvaluation(Callback):
    """Tests the global model, where there is one, on the test images that the server can see.

    Args:
        every: after how many rounds each time, and after the last; 0 for never.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.model: nn.Module | None = None  # built once: drawing initial weights takes as long as testing some

    def after_round(self, federation: Federation, current: Round) -> None:
        """Add ``evaluate.central`` to the round."""
        if not federation.is_central or not federation.due(self.every, current.round):
            return
        with current.timed("evaluate_central"):
            current.evaluate.central = self.measured(federation)
        if current.evaluate.central is not None:
            current.seconds["total"] = current.seconds.get("total", 0.0) + current.seconds["evaluate_central"]

    def measured(self, federation: Federation) -> Measured | None:
        """What the model reaches; None where there are no test images."""
        config = federation.config
        cache = site.open_data(config)
        test = cache.indices("test")
        if len(test) == 0:
            return None
        if self.model is None:
            self.model = site.build_model(config, federation.spec)
        self.model.load_state_dict(federation.state_dict())
        batches = Batches(cache, test, batch_size=4 * config.batch_size, seed=0, shuffle=False)
        with site.server_threads(config):
            evaluation = evaluate(
                self.model,
                batches,
                instantiate(config.loss, "loss"),
                device=site.device_of(config),
                decode=site.decoder_of(config, self.model),
                flip_permutation=site.flip_permutation(config, federation.spec),
            )
        counts = tally(evaluation, federation.spec.keypoints, federation.spec.thresholds[0])
        return Measured.of(counts.scores(), loss=evaluation.loss, examples=len(test))
