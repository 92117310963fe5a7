"""``distillation=server``: the clients' models teach the server's on images without labels."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord
from torch.nn import Parameter
from torch.optim import Optimizer

from fedgh_app.errors import UserError
from fedgh_app.runs.history import Round
from fedgh_app.server.federation import Federation, Update, tensors
from fedgh_app.server.parts.part import Part
from fedgh_app.server.public_images import PublicImages

KINDS = ("outputs", "features")


@dataclass(eq=False)
class ServerDistillation(Part):
    """Knowledge distillation into the server's model: every few rounds it is fine-tuned, for one pass over public
    images, to the mean of what the round's clients make of them (FedReID: Zhuang et al., "Performance Optimization for
    Federated Person Re-identification", ACM MM 2020).
    """

    images: PublicImages
    optimizer: Callable[[Iterable[Parameter], float], Optimizer]  # the clients', its learning rate times a factor
    every: int  # rounds between two distillations; 10 in the paper
    # What the models are compared in: their ``outputs``, or, as in the paper, L2-normalised ``features`` of the
    # backbone, for clients whose heads stay with them.
    output: str
    learning_rate_factor: float  # on the rate that clients train with in this round; 0.01 in the paper

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise UserError(f"distillation.every={self.every}: expected a whole number of at least 1")
        if self.output not in KINDS:
            raise UserError(f"distillation.output={self.output}: expected {' or '.join(KINDS)}")
        if not self.learning_rate_factor > 0:
            raise UserError(f"distillation.learning_rate_factor={self.learning_rate_factor}: expected a number above 0")

    def join(self, federation: Federation) -> None:
        """Open the images."""
        self.schedule = federation.schedule
        self.images.open()

    def after_aggregation(
        self, current: Round, base: ArrayRecord, proposed: ArrayRecord, updates: Sequence[Update], cohort: str
    ) -> ArrayRecord:
        """In every ``every``-th round the proposed model after one pass; notes the loss on the round."""
        if current.round % self.every:
            return proposed
        with current.timed("distil"):
            factor = self.schedule(current.round) * self.learning_rate_factor
            taught, loss = self.images.distil(
                tensors(proposed),
                (tensors(update.arrays) for update in updates),
                self.output,
                lambda parameters: self.optimizer(parameters, factor),
            )
        current.distillation[cohort] = {"loss": loss, "images": len(self.images.indices), "teachers": len(updates)}
        return ArrayRecord({key: Array(tensor.cpu().numpy().copy()) for key, tensor in taught.items()})
