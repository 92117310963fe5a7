"""Pose estimation as a task: what the rest of the app asks of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from fedgh_app.errors import UserError
from fedgh_app.pose.card import card
from fedgh_app.pose.data.batches import Batches
from fedgh_app.pose.data.cache import CropCache, open_cache
from fedgh_app.pose.data.records import DatasetSpec, load_spec
from fedgh_app.pose.evaluation.tally import BOUNDS, scores, tally
from fedgh_app.pose.models.decoding import Decode, Integral, decoder
from fedgh_app.pose.models.hhd import HHD, Guide
from fedgh_app.pose.training import evaluate, train
from fedgh_app.task import Evaluated, Examples, Learner, Measurements, Parts, Purpose, Spec, Task, Trained, Values
from fedgh_app.vision.card import Card
from fedgh_app.vision.tally import Scores, Tally
from fedgh_app.vision.training import Training


@dataclass(eq=False)
class PoseLearner(Learner):
    """A network that finds the keypoints of ``spec``; see `fedgh_app.task.Learner`."""

    spec: DatasetSpec
    model: nn.Module
    parts: Parts

    @property
    def decode(self) -> Decode:
        """How the model's maps are read (``evaluate.decoding``)."""
        return decoder(self.model, self.parts.evaluate["decoding"], self.parts.loss)

    @property
    def flip_permutation(self) -> np.ndarray | None:
        """The order of the keypoints in a mirrored image where there is a flip test (``evaluate.flip_test``)."""
        return self.spec.flip_permutation if self.parts.evaluate["flip_test"] else None

    def batches(
        self, examples: Examples, indices: Sequence[int] | np.ndarray, purpose: Purpose, *, seed: int = 0
    ) -> Batches:
        """Batches of crops; for testing they are four times as large, since no gradients are kept."""
        size = self.parts.batch_size
        return Batches(
            cast(CropCache, examples),
            indices,
            batch_size=4 * size if purpose == "test" else size,
            augmentation=self.parts.augmentation if purpose == "train" else None,
            seed=seed,
            shuffle=purpose in ("train", "probe"),
        )

    def train(self, batches: Iterable[Any], optimizer: torch.optim.Optimizer, **options: Any) -> Training:
        """Train the model in place, under its teacher where it has one."""
        parts = self.parts
        return train(self.model, batches, parts.loss, optimizer, device=self.device, guide=parts.guide, **options)

    def evaluate(
        self, examples: Examples, indices: Sequence[int] | np.ndarray, *, loss_alone: bool = False
    ) -> Evaluated:
        """Test the model on these crops, with a flip test where ``evaluate.flip_test`` says so."""
        found = evaluate(
            self.model,
            self.batches(examples, indices, "test"),
            self.parts.loss,
            device=self.device,
            decode=self.decode,
            flip_permutation=None if loss_alone else self.flip_permutation,
        )
        return Evaluated(found.loss, found.loss_terms, tally(found, self.spec.keypoints, self.spec.thresholds[0]))


class PoseTask(Task):
    """Pose estimation; see `fedgh_app.task.Task`."""

    name = "pose"
    part = "keypoint"
    metric = "PCK"
    builds: Mapping[str, tuple[str, ...]] = {
        "model": ("fedgh_app.pose.models",),
        "loss": ("fedgh_app.pose.models.losses",),
        "augmentation": ("fedgh_app.pose.data.augmentation",),
        "teacher": ("fedgh_app.pose.models.hhd",),
    }
    bounds: Mapping[str, str] = BOUNDS

    def check_opened(self, values: Values, file: Path) -> None:
        """Refuse (UserError) the config of a run without a size of images."""
        for group in values["dataset"].get("members", {"": values["dataset"]}).values():
            size = group.get("input_size")
            if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
                raise UserError(f"{file}: dataset.input_size: found {size}, expected [height, width]")

    def load_spec(self, name: str) -> DatasetSpec:
        """What a data set is."""
        return load_spec(name)

    def open(self, spec: Spec, root: Path, dataset: Values, directory: Path) -> CropCache:
        """The crops of the data below ``root``, cut where they are not yet."""
        if not root.is_dir():
            raise UserError(f"dataset.root={root}: no such directory; expected data set {spec.name}: {spec.obtain}")
        height, width = dataset["input_size"]
        return open_cache(
            cast(DatasetSpec, spec),
            root,
            input_size=(int(height), int(width)),
            on_bad=dataset["on_bad"],
            directory=directory,
        )

    def model_arguments(self, spec: Spec) -> dict[str, int]:
        """A map for each keypoint."""
        return {"num_keypoints": len(spec.predicts)}

    def other_arguments(self, spec: Spec) -> dict[str, int]:
        """One map more."""
        return {"num_keypoints": len(spec.predicts) + 1}

    def learner(self, spec: Spec, model: nn.Module, parts: Parts) -> PoseLearner:
        """``model`` as it finds the keypoints of ``spec``."""
        return PoseLearner(cast(DatasetSpec, spec), model, parts)

    def guide(self, distillation: HHD, teacher: Trained, model: Values, spec: Spec, dataset: Values) -> Guide:
        """A heatmap model as the teacher of integral students."""
        key = f"teacher.run={teacher.directory if teacher.file.stem == 'model' else teacher.file}"
        if teacher.spec.predicts != spec.predicts:
            raise UserError(
                f"{key}: finds {', '.join(teacher.spec.predicts)}; expected a teacher of the keypoints of {spec.name}: "
                f"{', '.join(spec.predicts)}"
            )
        if getattr(teacher.model, "integral", None) is not None:
            raise UserError(
                f"{key}: its maps are implicit (model.head=integral); expected a run with model.head=heatmap"
            )
        height, width = teacher.dataset["input_size"]
        student_height, student_width = dataset["input_size"]
        if height * student_width != width * student_height:
            raise UserError(
                f"{key}: was trained on images of {height} x {width}; expected the shape of "
                f"dataset.input_size={list(dataset['input_size'])}, larger or smaller"
            )
        return Guide(
            teacher.model.requires_grad_(False),
            distillation,
            Integral(model["debiased"], model["beta"]),
            logits=teacher.loss.logits,
            input_size=(height, width),
        )

    def scores(self, tally: Tally) -> Scores:
        """PCK, its area, heatmap accuracy."""
        return scores(tally)

    def result(self, scores: Measurements, clients: Mapping[str, float | None]) -> dict[str, object]:
        """``pck``, ``per_keypoint``, ``auc``, ``heatmap_accuracy``, ``clients_pck``."""
        more = {name: scores.more.get(name) for name in ("heatmap_accuracy", "auc")}
        return {"pck": scores.score, "per_keypoint": scores.parts, **more, "clients_pck": dict(clients)}

    def draw(self, learner: Learner, examples: Examples, file: Path) -> None:
        """Predicted and true keypoints on test images."""
        from fedgh_app.pose.evaluation.pictures import predictions  # which no client needs

        pose = cast(PoseLearner, learner)
        predictions(pose.model, cast(CropCache, examples), file, pose.decode, pose.flip_permutation)

    def card(self, values: Values, specs: Mapping[str, Spec]) -> Card:
        """What the network is, how it is used and was measured."""
        return card(values, cast(Mapping[str, DatasetSpec], specs))


TASK = PoseTask()
