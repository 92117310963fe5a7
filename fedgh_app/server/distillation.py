"""What the server learns from images of its own: knowledge distillation, and the shared images of client clustering.

Both are FedReID's (Zhuang et al., "Performance Optimization for Federated Person Re-identification", ACM MM 2020).
The images need no labels; they are public, or the server's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from omegaconf import DictConfig
from torch import Tensor, nn

from fedgh_app.config.combinations import fedbn
from fedgh_app.config.compose import fedgh_home
from fedgh_app.config.instantiation import build_optimizer, instantiate
from fedgh_app.data import site
from fedgh_app.errors import UserError
from fedgh_app.pose.data.batches import Batches
from fedgh_app.pose.data.cache import open_cache
from fedgh_app.pose.data.records import load_spec
from fedgh_app.server.federation import Federation, Round, Update, tensors
from fedgh_app.vision.distillation import distil, soft_targets
from fedgh_app.vision.training import embed
from strategies.randomness import generator


class PublicImages:
    """A fixed draw of a data set's training images, without their labels.

    Args:
        config: the run's config.
        node: a data set's config (``spec``, ``root``), whose images are cropped as the run's own.
        count: how many to draw.
        key: which setting they belong to, for error messages and the draw.
    """

    def __init__(self, config: DictConfig, node: DictConfig, count: int, key: str) -> None:
        spec = load_spec(node.spec)
        root = Path(node.root).expanduser().resolve()
        if not root.is_dir():
            raise UserError(f"{key}.root={root}: no such directory; expected data set {node.spec}: {spec.obtain}")
        self.cache = open_cache(
            spec,
            root,
            input_size=tuple(config.dataset.input_size),
            on_bad=config.dataset.on_bad,
            directory=fedgh_home() / "cache" / "crops",
        )
        # Never of the test images, which may be those of the run.
        train = self.cache.indices("train")
        drawn = torch.randperm(len(train), generator=generator(config.seed, "public images", key))[:count]
        self.indices = np.sort(train[drawn.numpy()])
        self.batch_size = config.batch_size
        # Under FedBN the server has no statistics of its own: BatchNorm takes those of the images at hand.
        self.batch_statistics = fedbn(config)

    def batches(self) -> Batches:
        """The images, always in the same order."""
        return Batches(self.cache, self.indices, batch_size=self.batch_size, seed=0, shuffle=False)

    def embed(self, config: DictConfig, model: nn.Module, state: Mapping[str, Tensor]) -> Tensor:
        """What the backbone of a client's model makes of the images: (D,), all images one after the other.

        Args:
            config: the run's config.
            model: takes up ``state``; what a client keeps to itself is as it stands there.
            state: what the client sent.
        """
        model.load_state_dict(state, strict=False)
        device = site.device_of(config)
        with site.server_threads(config):
            found = [
                embed(model, batch.images, device=device, batch_statistics=self.batch_statistics)
                for batch in self.batches()
            ]
        return torch.cat(found).flatten().cpu()


class ServerDistillation:
    """Knowledge distillation into the server's model: every few rounds it is fine-tuned, for one pass over public
    images, to the mean of what the round's clients make of them.

    Args:
        every: rounds between two distillations; 10 in the paper.
        output: what the models are compared in: ``outputs``, or, as in the paper, L2-normalised ``features`` of the
            backbone, for clients whose heads stay with them.
        learning_rate_factor: on the rate that clients train with in this round; 0.01 in the paper.
        images: the public images; None to check the other arguments only.
    """

    def __init__(
        self, images: PublicImages | None, every: int = 10, output: str = "outputs", learning_rate_factor: float = 0.01
    ) -> None:
        if not isinstance(every, int) or every < 1:
            raise UserError(f"distillation.every={every}: expected a whole number of at least 1")
        if output not in ("outputs", "features"):
            raise UserError(f"distillation.output={output}: expected outputs or features")
        if not learning_rate_factor > 0:
            raise UserError(f"distillation.learning_rate_factor={learning_rate_factor}: expected a number above 0")
        self.images = images
        self.every = every
        self.output = output
        self.learning_rate_factor = learning_rate_factor

    def due(self, server_round: int) -> bool:
        """Whether there is a distillation in this round."""
        return server_round % self.every == 0

    def distil(
        self, run: Federation, this: Round, arrays: ArrayRecord, updates: Sequence[Update], cohort: str
    ) -> ArrayRecord:
        """The model ``arrays`` after one pass; notes the loss on the round."""
        config, images = run.config, self.images
        assert images is not None
        # What clients keep to themselves is here as the seed drew it, and stays so.
        model = site.build_model(config, run.spec)
        device = site.device_of(config)
        states = (tensors(next(iter(update.reply.content.array_records.values()))) for update in updates)
        own = tensors(arrays)
        options: dict[str, Any] = {
            "output": self.output,
            "device": device,
            "batch_statistics": images.batch_statistics,
        }
        with site.server_threads(config):
            targets = soft_targets(model, states, images.batches(), **options)
            model.load_state_dict(own, strict=False)
            factor = instantiate(config.schedule, "schedule")(this.round, config.rounds) * self.learning_rate_factor
            shared = [parameter for name, parameter in model.named_parameters() if name in own]
            optimizer = build_optimizer(config, shared, factor)
            loss = distil(model, targets, images.batches(), optimizer, **options)
        this.distillation[cohort] = {"loss": loss, "images": len(targets), "teachers": len(updates)}
        after = model.state_dict()
        return ArrayRecord({key: Array(after[key].cpu().numpy().copy()) for key in own})
