"""Classification of generated images, as a task."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from fedgh_app.task import Learner, Task
from fedgh_app.tasks import read_spec
from fedgh_app.vision.card import Card
from fedgh_app.vision.tally import EXAMPLES, Scores, Tally


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))

    def forward(self, images):
        return self.head(self.backbone(images))


class Loss(nn.Module):
    def per_example(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, batch.labels, reduction="none")

    def forward(self, outputs, batch):
        return self.per_example(outputs, batch).mean()


class Noise:
    """80 images, every second one brighter, seen by four cameras."""

    def __init__(self, spec):
        self.spec, self.fingerprint, number = spec, "noise", np.arange(80)
        self.ids = number.astype(str)
        self.attributes = {"camera": np.char.add("camera ", (number // 2 % 4).astype(str))}
        self.labels = torch.from_numpy(number % 2)
        noise = torch.randn(80, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        self.images = noise + 0.5 * self.labels[:, None, None, None]

    def indices(self, split):
        return np.flatnonzero((np.arange(80) >= 64) == (split == "test"))


@dataclass(eq=False)
class Classifier(Learner):
    spec: object
    model: nn.Module
    parts: object

    def batches(self, examples, indices, purpose, *, seed=0):
        shuffled = purpose in ("train", "probe")
        order = np.random.default_rng(seed % 2**32).permutation(indices) if shuffled else indices
        parts = torch.as_tensor(order).split(self.parts.batch_size)
        return [SimpleNamespace(images=examples.images[part], labels=examples.labels[part]) for part in parts]

    def count(self, outputs, batch):
        right = outputs.argmax(1) == batch.labels
        of = {name: batch.labels == number for number, name in enumerate(self.spec.predicts)}
        return Tally({name: {"seen": int(it.sum()), "right": int(right[it].sum())} for name, it in of.items()})


class Toy(Task):
    name, part, metric = "toy", "class", "accuracy"
    builds = {"model": ("fedgh_app.toy",), "loss": ("fedgh_app.toy",)}
    bounds = {"seen": EXAMPLES, "right": "seen"}
    learner = staticmethod(Classifier)

    def load_spec(self, name):
        values = read_spec(name)[1]
        return SimpleNamespace(name=name, headline="accuracy", predicts=tuple(values["classes"]), **values)

    def open(self, spec, root, dataset, directory):
        return Noise(spec)

    def model_arguments(self, spec):
        return {"classes": len(spec.predicts)}

    def other_arguments(self, spec):
        return {"classes": len(spec.predicts) + 1}

    def scores(self, tally):
        parts = {name: sums["right"] / max(1, sums["seen"]) for name, sums in tally.sums.items()}
        return Scores(float(np.mean([*parts.values()])), parts, labelled={n: s["seen"] for n, s in tally.sums.items()})

    def card(self, values, specs):
        return Card("A network that tells dark images from bright ones.", (), ("Accuracy is a mean over classes.",), ())


TASK = Toy()
