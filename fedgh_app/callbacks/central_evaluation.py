"""The server's own evaluation."""

from fedgh_app.runs.history import Measured, Round
from fedgh_app.server.callback import Callback
from fedgh_app.server.federation import Federation
from fedgh_app.task import Learner


class CentralEvaluation(Callback):
    """Tests the global model on the server's test images, ``every`` so many rounds and after the last; 0 for never."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.learner: Learner | None = None  # built once: drawing initial weights takes as long as testing some

    def after_round(self, federation: Federation, current: Round) -> None:
        """Add ``evaluate.central`` to the round."""
        if not federation.is_central or not federation.due(self.every, current.round):
            return
        with current.timed("total"), current.timed("evaluate_central"):
            current.evaluate.central = self.measured(federation)

    def measured(self, federation: Federation) -> Measured | None:
        """What the model reaches; None where there are no test images."""
        examples = federation.data.only.examples
        test = examples.indices("test")
        if len(test) == 0:
            return None
        if self.learner is None:
            self.learner = federation.learner()
        self.learner.model.load_state_dict(federation.state_dict())
        with federation.threads():
            tested = self.learner.evaluate(examples, test)
        return Measured.of(federation.task.scores(tested.tally), loss=tested.loss, examples=len(test))
