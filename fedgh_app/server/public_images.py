"""Images that need no labels, public or the server's own, and what models make of them: for knowledge distillation and
for client clustering, both FedReID's (Zhuang et al., "Performance Optimization for Federated Person Re-identification",
ACM MM 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from fedgh_app.pose.data.batches import Batches
from fedgh_app.pose.data.cache import CropCache
from fedgh_app.pose.training import embed
from fedgh_app.vision.distillation import distil, soft_targets
from strategies.randomness import generator

State = Mapping[str, Tensor]


@dataclass
class PublicImages:
    """A fixed draw of a data set's training images, without their labels.

    Attributes:
        open_examples: opens the data set, cropped as the run's own.
        count: how many to draw.
        seed, key: what the draw depends on: the run's seed, and the setting that the images belong to.
        batch_size: of every batch of them.
        build_model: a new model; what clients keep to themselves is in it as the seed drew it.
        device: where models run.
        batch_statistics: whether BatchNorm takes the statistics of the images at hand, as the server has none.
        threads: a block in which torch may use the server's threads.
    """

    open_examples: Callable[[], CropCache]
    count: int
    seed: int
    key: str
    batch_size: int
    build_model: Callable[[], nn.Module]
    device: torch.device
    batch_statistics: bool
    threads: Callable[[], AbstractContextManager[None]]

    def open(self) -> None:
        """Draw the images; UserError where they are not there."""
        self.examples = self.open_examples()
        # Never of the test images, which may be those of the run.
        train = self.examples.indices("train")
        drawn = torch.randperm(len(train), generator=generator(self.seed, "public images", self.key))[: self.count]
        self.indices = np.sort(train[drawn.numpy()])

    def __len__(self) -> int:
        """How many were drawn."""
        return len(self.indices)

    def batches(self) -> Batches:
        """The images, always in the same order."""
        return Batches(self.examples, self.indices, batch_size=self.batch_size, seed=0, shuffle=False)

    def embeddings(self, states: Mapping[str, State]) -> dict[str, Tensor]:
        """What the backbone of each client's model makes of the images: (D,), all images one after the other."""
        model, made = self.build_model(), {}
        for client, state in states.items():
            model.load_state_dict(state, strict=False)
            with self.threads():
                parts = [
                    embed(model, batch.images, device=self.device, batch_statistics=self.batch_statistics)
                    for batch in self.batches()
                ]
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

        Args:
            student: the shared part of a model; the rest stays as the seed drew it.
            teachers: likewise of each client.
            output: what they are compared in.
            optimizer: made for the student's shared parameters.
        """
        model = self.build_model()
        options: dict[str, Any] = {
            "output": output,
            "device": self.device,
            "batch_statistics": self.batch_statistics,
        }
        with self.threads():
            targets = soft_targets(model, teachers, self.batches(), **options)
            model.load_state_dict(student, strict=False)
            shared = [parameter for name, parameter in model.named_parameters() if name in student]
            loss = distil(model, targets, self.batches(), optimizer(shared), **options)
        after = model.state_dict()
        return {key: after[key] for key in student}, loss
