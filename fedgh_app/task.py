"""What a task is. All that differs between pose estimation and another task stands behind `Task`; the rest of the app
knows neither keypoints nor identities.

A task is one package beside ``pose/`` with a ``task.py``, and one row in `TASKS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from fedgh_app.vision.card import Card
from fedgh_app.vision.objectives import Penalty
from fedgh_app.vision.tally import Scores, Tally
from fedgh_app.vision.training import Batch, Training

# By the name that `task:` has in datasets/*.yaml: where the task's one instance is.
TASKS = {"pose": "fedgh_app.pose.task:POSE"}

Side = Literal["train", "test"]


class Spec(Protocol):
    """What a data set is, as ``datasets/<name>.yaml`` describes it.

    ``predicts`` names what a head trained on it predicts (keypoints, identities): the server compares it, and never
    reads it. ``headline`` names the headline metric, such as PCK@0.2.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def title(self) -> str: ...  # noqa: D102
    @property
    def licence(self) -> str: ...  # noqa: D102
    @property
    def source(self) -> str: ...  # noqa: D102
    @property
    def obtain(self) -> str: ...  # noqa: D102
    @property
    def predicts(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def headline(self) -> str: ...  # noqa: D102


class Examples(Protocol):
    """A data set that was opened: N examples, each on one side of its fixed split."""

    @property
    def spec(self) -> Spec: ...  # noqa: D102
    @property
    def ids(self) -> np.ndarray: ...  # noqa: D102  # (N,) str
    @property
    def attributes(self) -> Mapping[str, np.ndarray]: ...  # noqa: D102  # each (N,) str
    @property
    def fingerprint(self) -> str: ...  # noqa: D102  # of all that the examples depend on

    def indices(self, split: Side) -> np.ndarray:
        """Positions of the examples of one side of the split, ascending (n,) int64."""


class Learner(Protocol):
    """A model, with all that its training and testing on one data set takes."""

    model: nn.Module

    def batches(
        self, examples: Examples, indices: np.ndarray, *, seed: int = 0, purpose: Literal["train", "probe", "test"]
    ) -> Iterable[Batch]:
        """Batches of these examples: ``train`` augmented and shuffled, ``probe`` shuffled alone, ``test`` in order."""

    def train(
        self,
        batches: Iterable[Batch],
        optimizer: torch.optim.Optimizer,
        *,
        epochs: int,
        penalty: Penalty | None = None,
        squared_losses: bool = False,
    ) -> Training:
        """Train the model in place; see `fedgh_app.vision.training.train`."""

    def evaluate(self, examples: Examples, indices: np.ndarray, *, quick: bool = False) -> Evaluated:
        """Test the model on these examples; ``quick`` for the sake of the loss alone."""

    def output(self, images: Tensor, kind: str) -> Tensor:
        """What the model makes of images (B, 3, H, W), in whichever mode it is: (B, …) float32.

        Kinds are those of `Task.outputs`, and ``features``, (B, C): the backbone's output averaged over its pixels.
        """


class Evaluated(Protocol):
    """What an evaluation found: the mean loss over ``loss_terms`` terms (nan where there are none), and the sums."""

    loss: float
    loss_terms: int
    tally: Tally


class Task(Protocol):
    """One task.

    Attributes:
        name: as ``task:`` in ``datasets/*.yaml`` has it.
        part: what a row of the table of scores is about: ``keypoint``.
        metric: the headline's short name in tables: ``PCK``.
        builds: by config group, the modules whose classes a ``_target_`` of this task may name.
        bounds: the kinds of sums of a tally, and what bounds each; see `Tally.fault`.
        outputs: kinds of `Learner.output` beside ``features``; the first is what cosine distances are taken of.
    """

    name: str
    part: str
    metric: str
    builds: Mapping[str, tuple[str, ...]]
    bounds: Mapping[str, str]
    outputs: tuple[str, ...]

    def load_spec(self, name: str) -> Spec:
        """What a data set is; UserError where it is not described, or wrongly."""

    def open(self, dataset: DictConfig, spec: Spec, directory: Path) -> Examples:
        """The examples of a ``dataset`` group, prepared below ``directory`` where they are not yet; UserError where
        data are missing or bad.
        """

    def build_model(self, config: DictConfig, spec: Spec) -> nn.Module:
        """The configured network for what ``spec`` predicts, drawn from PyTorch's global generator."""

    def learner(self, config: DictConfig, spec: Spec, model: nn.Module, device: torch.device) -> Learner:
        """``model`` with the configured loss, augmentation, batches, evaluation and, where there is one, teacher."""

    def check(self, config: DictConfig) -> None:
        """Refuse (UserError) values that this task can tell wrong before anything is built."""

    def scores(self, tally: Tally) -> Scores:
        """What a tally comes to."""

    def result(self, scores: Scores, clients: Mapping[str, float]) -> dict[str, object]:
        """The task's own fields of ``result.json``, given the run's scores and the headline of each client."""

    def draw(self, learner: Learner, examples: Examples, file: Path) -> None:
        """A picture of what the model finds on test images."""

    def card(self, values: Mapping[str, Any], specs: Mapping[str, Spec]) -> Card:
        """What a model card says of this task's model, given a run's config and its data sets by name."""


def task_of(name: str) -> Task:
    """The task of this name; KeyError where there is none."""
    module, _, attribute = TASKS[name].partition(":")
    task: Task = getattr(importlib.import_module(module), attribute)
    return task
