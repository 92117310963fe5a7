"""Images that need no labels, public or the server's own, and what models make of them: for knowledge distillation and
for client clustering, both FedReID's (Zhuang et al., "Performance Optimization for Federated Person Re-identification",
ACM MM 2020).
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from fedgh_app.data.federated import DataSet
from fedgh_app.errors import UserError
from fedgh_app.task import Learner
from fedgh_app.vision.distillation import distil, soft_targets
from fedgh_app.vision.training import Batch, embed, place
from strategies.randomness import generator

State = Mapping[str, Tensor]


@dataclass
class PublicImages:
    """A fixed draw of a data set's training images, without their labels."""

    data: DataSet
    count: int  # how many to draw
    seed: int  # of the run; with the key, what the draw depends on
    key: str  # the setting that the images belong to
    learner: Callable[[], Learner]  # a new model with its batches; what clients keep is in it as the seed drew it
    local_keys: Callable[[nn.Module], tuple[str, ...]]  # entries of a model's state dict that stay on the clients
    threads: Callable[[], AbstractContextManager[None]]  # a block in which torch may use the server's threads

    def open(self) -> None:
        """Draw the images; UserError where they are not there."""
        if not self.data.root.is_dir():
            spec = self.data.spec
            raise UserError(
                f"{self.key}.root={self.data.root}: no such directory; expected data set {spec.name}: {spec.obtain}"
            )
        # Never of the test images, which may be those of the run.
        train = self.data.examples.indices("train")
        drawn = torch.randperm(len(train), generator=generator(self.seed, "public images", self.key))[: self.count]
        self.indices = np.sort(train[drawn.numpy()])

    def batches(self, learner: Learner) -> Iterable[Batch]:
        """The images, always in the same order."""
        return learner.batches(self.data.examples, self.indices, "public")

    def _options(self, learner: Learner) -> dict[str, Any]:
        # A server that has no running statistics, because they stay on the clients, takes those of the images at hand.
        local = set(self.local_keys(learner.model))
        statistics = [key for key in learner.model.state_dict() if key.endswith("running_mean")]
        none = bool(statistics) and local.issuperset(statistics)
        return {"device": learner.device, "batch_statistics": none}

    def embeddings(self, states: Mapping[str, State]) -> dict[str, Tensor]:
        """What the backbone of each client's model makes of the images: (D,), all images one after the other."""
        learner, made = self.learner(), {}
        model, options = learner.model, self._options(learner)
        place(model, learner.device)
        for client, state in states.items():
            model.load_state_dict(state, strict=False)
            with self.threads():
                parts = [embed(model, batch.images, **options) for batch in self.batches(learner)]
            made[client] = torch.cat(parts).flatten().cpu()
        return made

    def distil(
        self,
        student: State,
        teachers: Iterable[State],
        output: str,
        optimizer: Callable[[Iterable[Parameter]], Optimizer],
    ) -> tuple[dict[str, Tensor], float]:
        """Fine-tune the student for one pass to the mean of what the teachers put out; it after that, and the loss.

        States hold the shared part of a model, the rest stays as the seed drew it; ``output`` is what is compared.
        """
        learner = self.learner()
        model, options = learner.model, {"output": output, **self._options(learner)}
        with self.threads():
            targets = soft_targets(model, teachers, self.batches(learner), **options)
            model.load_state_dict(student, strict=False)
            shared = [parameter for name, parameter in model.named_parameters() if name in student]
            loss = distil(model, targets, self.batches(learner), optimizer(shared), **options)
        after = model.state_dict()
        return {key: after[key] for key in student}, loss
