"""A Flower ``NumPyClient`` around a task's training on one client's data."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from flwr.client import NumPyClient
from flwr.common.typing import NDArrays, Scalar
from torch import Tensor

from fedgh_app.client.local_state import LocalState
from fedgh_app.config.settings import Settings
from fedgh_app.data.site import Site
from fedgh_app.task import Learner
from fedgh_app.vision.objectives import Objective, Received
from fedgh_app.vision.schedules import Schedule
from fedgh_app.vision.training import Batch, OptimizerFactory, cosine_distance, predict
from strategies.gaussian import GaussianMechanism
from strategies.randomness import derive_seed

COSINE_DISTANCE = "cosine-distance"
LOSS_RMS = "loss-rms"

# What a client keeps is filed by what needs it: the part of the model that is not shared, the objective's memory.
_MODEL, _MEMORY = "model:", "memory:"


@dataclass(frozen=True, eq=False)
class LocalTraining:
    """What a client trains by, whoever's data it has."""

    settings: Settings
    objective: Objective  # what is minimised beside the loss
    optimizer: OptimizerFactory  # of parameters and a factor on the learning rate
    learning_rate: float  # before the schedule
    schedule: Schedule  # the factor by round
    local_keys: tuple[str, ...]  # entries of the model's state dict that stay on the client
    initial: Mapping[str, Tensor]  # the model's state before any training
    noise: GaussianMechanism | None = None  # what an update goes through before it is sent


@dataclass(eq=False)
class TaskClient(NumPyClient):
    """Trains and evaluates the model it is sent on the data of one site."""

    site: Site
    learner: Learner  # clients of one process may share it: every call loads all parameters and buffers
    training: LocalTraining
    local: LocalState = field(default_factory=LocalState)  # what this client keeps to itself
    extra: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # sent beside the model, by record

    def __post_init__(self) -> None:
        self.model = self.learner.model.to(self.learner.device)
        kept = set(self.training.local_keys)
        self.shared_keys = [key for key in self.model.state_dict() if key not in kept]

    @property
    def keeps_state(self) -> bool:
        """Whether anything stays here between two trainings."""
        return bool(self.training.local_keys) or self.training.objective.has_memory

    def get_parameters(self, config: dict[str, Scalar]) -> NDArrays:
        """The shared parameters and buffers, in the order of ``shared_keys``."""
        state = self.model.state_dict()
        return [state[key].detach().cpu().numpy() for key in self.shared_keys]

    def set_parameters(self, parameters: Sequence[np.ndarray]) -> None:
        """Load shared parameters and buffers, in the order of ``shared_keys``, and this client's own beside them."""
        # as_tensor alone would let training write into the server's message, which clients of a process share.
        state = {key: torch.as_tensor(array).clone() for key, array in zip(self.shared_keys, parameters, strict=True)}
        for key in self.training.local_keys:
            state[key] = self.local.accepted.get(_MODEL + key, self.training.initial[key])
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
        training, settings = self.training, self.training.settings
        server_round, draw = int(config["server-round"]), int(config["draw"])
        asked = list(config.get("report", []))  # type: ignore[arg-type]  # Flower's Scalar leaves out lists
        self.set_parameters(parameters)
        probe = before = None
        if COSINE_DISTANCE in asked:
            probe = next(iter(self._batches("probe", draw))).images
            before = predict(self.model, probe, device=self.learner.device)
        factor = training.schedule(server_round, settings.rounds)
        optimizer = training.optimizer(self.model.parameters(), factor)
        received = self._received()
        done = self.learner.train(
            self._batches("train", draw),
            optimizer,
            epochs=settings.local_epochs,
            penalty=training.objective.penalty(received),
            squared_losses=LOSS_RMS in asked,
        )
        if self.keeps_state:
            self._propose(draw, received, done.steps, training.learning_rate * factor)
        metrics: dict[str, Scalar] = {"loss": done.loss, "steps": done.steps}
        if probe is not None and before is not None:
            after = predict(self.model, probe, device=self.learner.device)
            metrics[COSINE_DISTANCE] = cosine_distance(before, after)
        if done.loss_rms is not None:
            metrics[LOSS_RMS] = done.loss_rms
        if settings.runtime.name == "simulation" and self.site.speed < 1:
            # A slow machine, as far as the others can tell.
            time.sleep((time.perf_counter() - started) * (1 / self.site.speed - 1))
        metrics["seconds"] = time.perf_counter() - started
        trained = self.get_parameters({})
        if training.noise is not None:
            trained = training.noise.release(parameters, trained)
        return trained, len(self.site.train), metrics

    def evaluate(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """Test the model on this client's own test examples, or its training ones where ``config["split"]`` says so.

        Returns:
            Loss, number of examples, and the sums of the evaluation's `Tally`, which add up over clients.
        """
        self.set_parameters(parameters)
        trained_on = config.get("split") == "train"  # asked for their loss alone
        indices = self.site.train if trained_on else self.site.test
        tested = self.learner.evaluate(self.site.examples, indices, loss_alone=trained_on)
        # A set without any label has no loss; a message cannot carry nan past the screening.
        loss = tested.loss if tested.loss_terms else 0.0
        return loss, len(indices), {"loss-terms": tested.loss_terms, **tested.tally.as_scalars()}

    def _received(self) -> Received:
        """What the objective starts from; nothing is copied for one that starts from nothing."""
        if not self.training.objective.needs_start:
            return Received({}, {})
        shared = set(self.shared_keys)
        start = {n: p.detach().clone() for n, p in self.model.named_parameters() if n in shared}
        memory = {k.removeprefix(_MEMORY): v for k, v in self.local.accepted.items() if k.startswith(_MEMORY)}
        return Received(start, memory, self.extra)

    def _propose(self, draw: int, received: Received, steps: int, learning_rate: float) -> None:
        state = {key: tensor.detach() for key, tensor in self.model.state_dict().items()}
        memory = self.training.objective.next_memory(received, state, steps=steps, learning_rate=learning_rate)
        own = {_MODEL + key: state[key].cpu().clone() for key in self.training.local_keys}
        self.local.propose(draw, own | {_MEMORY + key: tensor.cpu() for key, tensor in memory.items()})

    def _batches(self, purpose: Literal["train", "probe"], draw: int) -> Iterable[Batch]:
        seed = derive_seed(self.training.settings.seed, "batches", self.site.name, purpose, draw)
        return self.learner.batches(self.site.examples, self.site.train, purpose, seed=seed)
