"""PoseClient: a pose model trained and tested on one client's images, as a Flower ``NumPyClient``."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from flwr.client import NumPyClient
from flwr.common.typing import NDArrays, Scalar
from omegaconf import DictConfig
from torch import nn

from fedgh_app.instantiation import build_optimizer, instantiate
from fedgh_app.pose.batches import Augmentation, Batches
from fedgh_app.pose.tally import tally
from fedgh_app.pose.training import cosine_distance, evaluate, predict, train
from fedgh_app.site import Site, device_of
from strategies.randomness import derive_seed


class PoseClient(NumPyClient):
    """Trains and evaluates the model it is sent on the images of one site.

    Args:
        config: the run's config.
        site: the client's crops.
        model: a model to load received parameters into. It may be shared by clients of one process, since every call
            loads all parameters and buffers.
    """

    def __init__(self, config: DictConfig, site: Site, model: nn.Module) -> None:
        self.config = config
        self.site = site
        self.device = device_of(config)
        self.model = model.to(self.device)

    def get_properties(self, config: dict[str, Scalar]) -> dict[str, Scalar]:
        """Name, label and sizes of this client, which the server asks for once, at the start."""
        return {
            "name": self.site.name,
            "label": self.site.label,
            "num-examples": len(self.site.train),
            "num-test": len(self.site.test),
            "keypoints": ",".join(self.site.cache.spec.keypoints),
        }

    def get_parameters(self, config: dict[str, Scalar]) -> NDArrays:
        """Parameters and buffers, in the order of the model's state dict."""
        return [tensor.detach().cpu().numpy() for tensor in self.model.state_dict().values()]

    def set_parameters(self, parameters: Sequence[np.ndarray]) -> None:
        """Load parameters and buffers, in the order of the model's state dict."""
        state = self.model.state_dict()
        arrays = zip(state, parameters, strict=True)
        # as_tensor alone would let training write into the server's message, which clients of a process share.
        self.model.load_state_dict({key: torch.as_tensor(array).clone() for key, array in arrays})

    def fit(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train for ``local_epochs`` with a fresh optimizer at this round's learning rate.

        Args:
            parameters: the global model.
            config: ``server-round``, and ``report``: what the strategy asks the client to measure beside.

        Returns:
            The trained model, the number of training examples, and ``loss``, ``steps``, ``seconds`` and what the
            strategy asked for.
        """
        started = time.perf_counter()
        server_round = int(config["server-round"])
        self.set_parameters(parameters)
        measures_distance = "cosine-distance" in list(config.get("report", []))  # type: ignore[arg-type]
        if measures_distance:
            probe = next(iter(self._batches(self.site.train, "probe", server_round)))
            before = predict(self.model, probe.images, device=self.device)
        factor = instantiate(self.config.schedule, "schedule")(server_round, self.config.rounds)
        optimizer = build_optimizer(self.config, self.model.parameters(), factor)
        loss = instantiate(self.config.loss, "loss")
        done = train(
            self.model,
            self._batches(self.site.train, "train", server_round, augment=True),
            loss,
            optimizer,
            epochs=self.config.local_epochs,
            device=self.device,
        )
        metrics: dict[str, Scalar] = {"loss": done.loss, "steps": done.steps}
        if measures_distance:
            after = predict(self.model, probe.images, device=self.device)
            metrics["cosine-distance"] = cosine_distance(before, after)
        metrics["seconds"] = time.perf_counter() - started
        return self.get_parameters({}), len(self.site.train), metrics

    def evaluate(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """Test the model on this client's own test images.

        Returns:
            Loss, number of test examples, and the counts of `fedgh_app.pose.tally.Tally` per keypoint, which add up
            over clients.
        """
        self.set_parameters(parameters)
        spec = self.site.cache.spec
        loss = instantiate(self.config.loss, "loss")
        found = evaluate(self.model, self._batches(self.site.test, "test"), loss, device=self.device)
        counts = tally(found, spec.keypoints, spec.thresholds[0])
        # A set without any visible keypoint has no loss; a message cannot carry nan past the screening.
        loss_value = found.loss if found.loss_terms else 0.0
        return loss_value, len(self.site.test), {"loss-terms": found.loss_terms, **counts.as_scalars()}

    def _batches(self, indices: np.ndarray, purpose: str, *keys: int, augment: bool = False) -> Batches:
        augmentation: Augmentation | None = None
        if augment:
            augmentation = instantiate(self.config.augmentation, "augmentation")
        return Batches(
            self.site.cache,
            indices,
            batch_size=self.config.batch_size if purpose != "test" else 4 * self.config.batch_size,
            augmentation=augmentation,
            seed=derive_seed(self.config.seed, "batches", self.site.name, purpose, *keys),
            shuffle=purpose != "test",
        )
