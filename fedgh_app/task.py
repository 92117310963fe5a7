"""What a task is. All that differs between pose estimation and another task stands behind `Task`; the rest of the app
knows neither keypoints nor identities.

A task is one package beside ``pose/`` with a ``task.py``, and one row in `fedgh_app.tasks.TASKS`. A task
knows nothing of configs: it is handed plain values, and the parts that the config describes (`Parts`). What it does
with a trained model at `fedgh predict`, `export`, `evaluate` and `score` is in its ``commands.py``, if it has one.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedgh_app.errors import UserError
from fedgh_app.resources import Values
from fedgh_app.tasks import TASKS, task_name
from fedgh_app.vision.card import Card
from fedgh_app.vision.objectives import Penalty
from fedgh_app.vision.tally import Scores, Tally
from fedgh_app.vision.training import Batch, Training, place, predict, train

Side = Literal["train", "test"]
Purpose = Literal["train", "probe", "test", "public"]


class Spec(Protocol):
    """What a data set is, as ``datasets/<name>.yaml`` describes it."""

    @property
    def name(self) -> str:
        """As the file is called."""

    @property
    def title(self) -> str:
        """For people."""

    @property
    def licence(self) -> str:
        """What its data may be used for."""

    @property
    def source(self) -> str:
        """Where they are from."""

    @property
    def obtain(self) -> str:
        """How to get them."""

    @property
    def predicts(self) -> tuple[str, ...]:
        """What a head trained on it predicts (keypoints, identities): the server compares it, and never reads it."""

    @property
    def headline(self) -> str:
        """Name of the headline metric, such as PCK@0.2."""


class Examples(Protocol):
    """A data set that was opened: N examples, each on one side of its fixed split."""

    @property
    def spec(self) -> Spec:
        """The data set."""

    @property
    def ids(self) -> np.ndarray:
        """(N,) str."""

    @property
    def attributes(self) -> Mapping[str, np.ndarray]:
        """What else is known of each, by name: (N,) str."""

    @property
    def fingerprint(self) -> str:
        """Changes with whatever the examples depend on."""

    def indices(self, split: Side) -> np.ndarray:
        """Positions of the examples of one side of the split, ascending (n,) int64."""


@dataclass(frozen=True, eq=False)
class Parts:
    """What a config describes beside the model, built."""

    loss: Any  # of the classes that the task lets this group build
    augmentation: Any  # likewise
    batch_size: int  # examples in a training batch
    evaluate: Values  # the group
    device: torch.device  # where the model trains
    guide: Any = None  # a teacher, as `Task.guide` made it


@dataclass(frozen=True, eq=False)
class Trained:
    """The model of a run that was opened."""

    directory: Path  # of the run
    file: Path  # the one in it that holds the model
    task: Task  # what the model is for
    spec: Spec  # the data set whose predictions it makes
    model: nn.Module  # on the CPU, in evaluation mode
    loss: Any  # what it was trained by
    values: Values  # the run's config; absolute paths are those of the machine it ran on
    metadata: Mapping[str, str]  # what the file says of the model: ``model``, ``dataset``, ``rounds``

    @property
    def dataset(self) -> Values:
        """The ``dataset`` group; of several data sets, that of the first, whose images they are cropped as."""
        group = self.values["dataset"]
        return next(iter(group["members"].values())) if "members" in group else group


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found: the mean loss over ``loss_terms`` terms (nan where there are none), and the sums."""

    loss: float
    loss_terms: int
    tally: Tally


class Learner(Protocol):
    """A model, with all that its training and testing on one data set takes."""

    spec: Any  # the data set
    model: nn.Module  # trained in place
    parts: Parts  # what the config describes beside it

    @property
    def device(self) -> torch.device:
        """Where the model trains."""
        return self.parts.device

    def batches(
        self, examples: Any, indices: Sequence[int] | np.ndarray, purpose: Purpose, *, seed: int = 0
    ) -> Iterable[Batch]:
        """Batches of these examples.

        ``train`` is augmented and shuffled, ``probe`` shuffled alone; ``public``, whose labels are not read, and
        ``test``, whose batches may be larger, come in order.
        """

    def count(self, outputs: Tensor, batch: Any) -> Tally:
        """What of an evaluation adds up, for the outputs (B, …) of one batch; for `evaluate` as it is here."""
        return Tally()

    def train(
        self,
        batches: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        epochs: int,
        penalty: Penalty | None = None,
        squared_losses: bool = False,
    ) -> Training:
        """Train the model in place; see `fedgh_app.vision.training.train`."""
        options: dict[str, Any] = {"epochs": epochs, "penalty": penalty, "squared_losses": squared_losses}
        return train(self.model, batches, self.parts.loss, optimizer, device=self.device, **options)

    def evaluate(self, examples: Any, indices: Sequence[int] | np.ndarray, *, loss_alone: bool = False) -> Evaluated:
        """Test the model on these examples; ``loss_alone`` spares what the loss does not need."""
        total, terms, tally = 0.0, 0, Tally()
        place(self.model, self.device)
        for batch in self.batches(examples, indices, "test"):
            outputs = predict(self.model, batch.images, device=self.device)
            losses = self.parts.loss.per_example(outputs, batch).double()
            total, terms = total + losses.sum().item(), terms + len(losses)
            tally += self.count(outputs, batch)
        return Evaluated(total / terms if terms else math.nan, terms, tally)


class Measurements(Protocol):
    """`Scores` as they were written down: None where there was nothing to measure."""

    score: float | None
    parts: dict[str, float | None]
    more: dict[str, float | None]


class Task(Protocol):
    """One task."""

    name: str  # as ``task:`` in ``datasets/*.yaml`` has it
    part: str  # what a row of the table of scores is about: ``keypoint``
    metric: str  # the headline's short name in tables: ``PCK``
    builds: Mapping[str, tuple[str, ...]]  # by config group, the modules whose classes a ``_target_`` may name
    bounds: Mapping[str, str]  # the kinds of sums of a tally, and what bounds each; see `Tally.fault`

    def check_opened(self, values: Values, file: Path) -> None:
        """Refuse (UserError) the config of a run, read from ``file``, that no model can be used by."""
        return

    def load_spec(self, name: str) -> Spec:
        """What a data set is; UserError where it is not described, or wrongly."""

    def open(self, spec: Spec, root: Path, dataset: Values, directory: Path) -> Examples:
        """The examples below ``root``, prepared below ``directory`` if need be; UserError for missing or bad ones."""

    def model_arguments(self, spec: Spec) -> dict[str, Any]:
        """What a model must be told of the data set, beside its own config group."""

    def other_arguments(self, spec: Spec) -> dict[str, Any]:
        """The same for a data set that predicts something else: what a federation shares must not depend on it."""

    def learner(self, spec: Spec, model: nn.Module, parts: Parts) -> Learner:
        """``model`` with all that its training and testing on such data take."""

    def guide(self, distillation: Any, teacher: Trained, model: Values, spec: Spec, dataset: Values) -> Any:
        """A trained model on the device of the training, beside those in training; UserError where it fits them not.

        ``distillation`` was built from the ``teacher`` group; ``model`` and ``dataset`` are the groups of those in
        training, and ``spec`` the data that they train on.
        """
        raise UserError(f"teacher=: models of the task {self.name} have no teacher; expected teacher=none")

    def scores(self, tally: Tally) -> Scores:
        """What a tally comes to."""

    def result(self, scores: Measurements, clients: Mapping[str, float | None]) -> dict[str, Any]:
        """The task's own fields of ``result.json``, given a run's scores and the headline of each client."""
        return {}

    def draw(self, learner: Learner, examples: Examples, file: Path) -> None:
        """Draw what the model finds on test images; nothing where a task has no such picture."""
        return

    def card(self, values: Values, specs: Mapping[str, Spec]) -> Card:
        """What a model card says of this task's model, given the run's config and its data sets by name."""


def task_of(dataset: str) -> Task:
    """The task of a data set; UserError where the set is not described, or for no task that there is."""
    return importlib.import_module(TASKS[task_name(dataset)]).TASK
