"""PoseClient: a pose model trained and tested on one client's images, as a Flower ``NumPyClient``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from flwr.client import NumPyClient
from flwr.common.typing import NDArrays, Scalar
from omegaconf import DictConfig
from torch import Tensor, nn

from fedgh_app.client import privacy
from fedgh_app.client.local_state import LocalState
from fedgh_app.config.instantiation import build_optimizer, instantiate
from fedgh_app.data.site import Site, decoder_of, device_of, flip_permutation
from fedgh_app.pose.data.augmentation import Augmentation
from fedgh_app.pose.data.batches import Batches
from fedgh_app.pose.evaluation.tally import tally
from fedgh_app.pose.models.hhd import Guide
from fedgh_app.pose.training import cosine_distance, evaluate, predict, train
from fedgh_app.vision.objectives import Objective, Plain, Received
from strategies.randomness import derive_seed

COSINE_DISTANCE = "cosine-distance"
LOSS_RMS = "loss-rms"

# What a client keeps is filed by what needs it: the part of the model that is not shared, the objective's memory.
_MODEL, _MEMORY = "model:", "memory:"


class PoseClient(NumPyClient):
    """Trains and evaluates the model it is sent on the images of one site.

    Args:
        config: the run's config.
        site: the client's crops.
        model: a model to load received parameters into. It may be shared by clients of one process, since every call
            loads all parameters and buffers.
        initial: the model's state before any training, where the part that is not shared starts.
        local: what this client keeps to itself.
        control: the server's control variate, where the objective needs one.
        guide: a teacher beside the model, where there is one.
    """

    def __init__(
        self,
        config: DictConfig,
        site: Site,
        model: nn.Module,
        initial: Mapping[str, Tensor],
        local: LocalState | None = None,
        control: Mapping[str, Tensor] | None = None,
        guide: Guide | None = None,
    ) -> None:
        self.config = config
        self.site = site
        self.device = device_of(config)
        self.model = model.to(self.device)
        self.local = local or LocalState()
        self.control = dict(control or {})
        self.guide = guide
        self.noise = privacy.mechanism(config)
        self.objective: Objective = instantiate(config.objective, "objective")
        self.own_keys: tuple[str, ...] = instantiate(config.sharing, "sharing").local_keys(model)
        self.shared_keys = [key for key in model.state_dict() if key not in set(self.own_keys)]
        self._initial = {key: initial[key] for key in self.own_keys}

    @property
    def keeps_state(self) -> bool:
        """Whether anything stays here between two trainings."""
        return bool(self.own_keys) or self.objective.has_memory

    def get_properties(self, config: dict[str, Scalar]) -> dict[str, Scalar]:
        """Name, label and sizes of this client, which the server asks for once, at the start."""
        return self.site.properties()

    def get_parameters(self, config: dict[str, Scalar]) -> NDArrays:
        """The shared parameters and buffers, in the order of ``shared_keys``."""
        state = self.model.state_dict()
        return [state[key].detach().cpu().numpy() for key in self.shared_keys]

    def set_parameters(self, parameters: Sequence[np.ndarray]) -> None:
        """Load shared parameters and buffers, in the order of ``shared_keys``, and this client's own beside them."""
        # as_tensor alone would let training write into the server's message, which clients of a process share.
        state = {key: torch.as_tensor(array).clone() for key, array in zip(self.shared_keys, parameters, strict=True)}
        for key in self.own_keys:
            state[key] = self.local.accepted.get(_MODEL + key, self._initial[key])
        self.model.load_state_dict(state)

    def fit(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train for ``local_epochs`` with a fresh optimizer at this round's learning rate.

        What stays on the client is proposed to ``local``.

        Args:
            parameters: the shared part of the model.
            config: ``server-round``; ``draw``, this training's number, on which the order of the batches depends; and
                ``report``: what the server asks the client to measure beside.

        Returns:
            The trained shared part (with ``privacy=local`` clipped and with noise), the number of training examples,
            and ``loss``, ``steps``, ``seconds`` and what was asked for.
        """
        started = time.perf_counter()
        server_round, draw = int(config["server-round"]), int(config["draw"])
        asked = list(config.get("report", []))  # type: ignore[arg-type]  # Flower's Scalar leaves out lists
        self.set_parameters(parameters)
        if COSINE_DISTANCE in asked:
            probe = next(iter(self._batches(self.site.train, "probe", draw)))
            before = predict(self.model, probe.images, device=self.device)
        factor = instantiate(self.config.schedule, "schedule")(server_round, self.config.rounds)
        optimizer = build_optimizer(self.config, self.model.parameters(), factor)
        received = self._received()
        done = train(
            self.model,
            self._batches(self.site.train, "train", draw, augment=True),
            instantiate(self.config.loss, "loss"),
            optimizer,
            epochs=self.config.local_epochs,
            device=self.device,
            penalty=self.objective.penalty(received),
            guide=self.guide,
            squared_losses=LOSS_RMS in asked,
        )
        if self.keeps_state:
            self._propose(draw, received, done.steps, float(self.config.optimizer.lr * factor))
        metrics: dict[str, Scalar] = {"loss": done.loss, "steps": done.steps}
        if COSINE_DISTANCE in asked:
            metrics[COSINE_DISTANCE] = cosine_distance(before, predict(self.model, probe.images, device=self.device))
        if done.loss_rms is not None:
            metrics[LOSS_RMS] = done.loss_rms
        if self.config.runtime.name == "simulation" and self.site.speed < 1:
            # A slow machine, as far as the others can tell.
            time.sleep((time.perf_counter() - started) * (1 / self.site.speed - 1))
        metrics["seconds"] = time.perf_counter() - started
        trained = self.get_parameters({})
        if self.noise is not None:
            trained = self.noise.release(parameters, trained)
        return trained, len(self.site.train), metrics

    def evaluate(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """Test the model on this client's own test images, or its training images where ``config["split"]`` says so.

        Returns:
            Loss, number of examples, and the counts of its `Tally` per keypoint, which add up over
            clients.
        """
        self.set_parameters(parameters)
        spec = self.site.cache.spec
        trained_on = config.get("split") == "train"  # asked for their loss alone, which no flip test changes
        images = self.site.train if trained_on else self.site.test
        found = evaluate(
            self.model,
            self._batches(images, "test"),
            instantiate(self.config.loss, "loss"),
            device=self.device,
            decode=decoder_of(self.config, self.model),
            flip_permutation=None if trained_on else flip_permutation(self.config, spec),
        )
        counts = tally(found, spec.keypoints, spec.thresholds[0])
        # A set without any visible keypoint has no loss; a message cannot carry nan past the screening.
        loss_value = found.loss if found.loss_terms else 0.0
        return loss_value, len(images), {"loss-terms": found.loss_terms, **counts.as_scalars()}

    def _received(self) -> Received:
        """What the objective starts from; nothing is copied for one that starts from nothing."""
        if isinstance(self.objective, Plain):
            return Received({}, {}, {})
        shared = set(self.shared_keys)
        start = {n: p.detach().clone() for n, p in self.model.named_parameters() if n in shared}
        memory = {k.removeprefix(_MEMORY): v for k, v in self.local.accepted.items() if k.startswith(_MEMORY)}
        return Received(start, memory, self.control)

    def _propose(self, draw: int, received: Received, steps: int, learning_rate: float) -> None:
        state = {key: tensor.detach() for key, tensor in self.model.state_dict().items()}
        memory = self.objective.next_memory(received, state, steps=steps, learning_rate=learning_rate)
        own = {_MODEL + key: state[key].cpu().clone() for key in self.own_keys}
        self.local.propose(draw, own | {_MEMORY + key: tensor.cpu() for key, tensor in memory.items()})

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
