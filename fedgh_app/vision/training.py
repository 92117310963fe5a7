"""The frame of local training: the loop over batches, precision and layout, evaluation mode. What a batch is labelled
with, and what a loss makes of it, is the task's.

On the CPU training repeats bit for bit: same weights, same batches, same number of threads, same numbers.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedgh_app.errors import UserError


class Batch(Protocol):
    """What training reads of a batch of B examples; its labels are the task's."""

    @property
    def images(self) -> Tensor:
        """(B, 3, h, w), normalised."""


# Of parameters, and of a factor on the configured learning rate.
OptimizerFactory = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]

B = TypeVar("B", bound=Batch)
B_contra = TypeVar("B_contra", bound=Batch, contravariant=True)


class Loss(Protocol[B_contra]):
    """What a model's outputs for a batch, float32 on the device of the training, are worth."""

    def __call__(self, outputs: Tensor, batch: B_contra) -> Tensor:
        """A scalar with a gradient."""

    def per_example(self, outputs: Tensor, batch: B_contra) -> Tensor:
        """Each example's own loss, (B,)."""


@dataclass(frozen=True)
class Training:
    """What local training reports.

    Attributes:
        loss: mean per example over all epochs.
        steps: of the optimizer.
        examples: seen, an example of two epochs twice.
        loss_rms: root of the mean over the examples seen of their squared losses, each example's as it was in its
            own step; None where it was not asked for.
    """

    loss: float
    steps: int
    examples: int
    loss_rms: float | None = None


def train(
    model: nn.Module,
    batches: Iterable[B] | Callable[[int], Iterable[B]],
    loss: Loss[B],
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    device: torch.device | str = "cpu",
    penalty: Callable[[nn.Module], Tensor] | None = None,
    guide: Callable[[Tensor, Tensor, B], Tensor] | None = None,
    squared_losses: bool = False,
) -> Training:
    """Train ``model`` in place.

    Args:
        batches: of an epoch, or a function from the epoch's number, 0 ... epochs - 1, to them: a set of batches whose
            order is a function of its seed comes in the same order each time it is walked through.
        loss: what is reported.
        optimizer: already built over the parameters of ``model``.
        penalty: a term of the parameters that the local objective adds to the loss of each batch, such as FedProx's.
            It is not part of the reported loss, which so stays comparable between objectives.
        guide: ``(images, outputs, batch) -> scalar``: a term of what the model makes of the images, such as a
            teacher's. It too is not part of the reported loss.
        squared_losses: measure ``Training.loss_rms``, the statistical utility of Oort (Lai et al., OSDI 2021).
    """
    device = torch.device(device)
    place(model, device)
    model.train()
    # Summed on the device: reading a value after each step would make the GPU wait for the CPU.
    total = torch.zeros((), dtype=torch.float64, device=device)
    squares = torch.zeros((), dtype=torch.float64, device=device)
    steps = examples = 0
    for epoch in range(epochs):
        for batch in batches(epoch) if callable(batches) else batches:
            images = image_layout(batch.images, device)
            outputs = outputs_of(model, images, device)
            value = loss(outputs, batch)
            objective = value if penalty is None else value + penalty(model)
            if guide is not None:
                objective = objective + guide(images, outputs, batch)
            optimizer.zero_grad(set_to_none=True)
            objective.backward()
            optimizer.step()
            total += value.detach() * len(outputs)
            if squared_losses:
                squares += loss.per_example(outputs.detach(), batch).double().square().sum()
            steps += 1
            examples += len(outputs)
            del images, outputs, value, objective  # else they would lie beside those of the next batch
    if examples == 0:
        raise UserError(f"training: found 0 examples in {epochs} epochs, expected at least 1")
    rms = math.sqrt(squares.item() / examples) if squared_losses else None
    return Training(total.item() / examples, steps, examples, rms)


def predict(
    model: nn.Module, images: Tensor, *, device: torch.device | str = "cpu", batch_statistics: bool = False
) -> Tensor:
    """Outputs (B, …) float32 for images (B, 3, H, W), without gradients; see `evaluation_mode`."""
    with torch.inference_mode(), evaluation_mode(model, batch_statistics=batch_statistics):
        return outputs_of(model, images, torch.device(device))


def embed(
    model: nn.Module, images: Tensor, *, device: torch.device | str = "cpu", batch_statistics: bool = False
) -> Tensor:
    """Features (B, C) float32 of images (B, 3, H, W), without gradients; see `features_of`, `evaluation_mode`."""
    with torch.inference_mode(), evaluation_mode(model, batch_statistics=batch_statistics):
        return features_of(model, images, torch.device(device))


def outputs_of(model: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """Outputs (B, …) float32 for images (B, 3, H, W), in whichever mode the model is."""
    with _mixed_precision(device):
        return model(image_layout(images, device)).float()


def features_of(model: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """The backbone's output averaged over its pixels, (B, C) float32, in whichever mode the model is."""
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise UserError(f"model: found {type(model).__name__} without a `backbone`, expected one to take features from")
    with _mixed_precision(device):
        maps = backbone(image_layout(images, device))
    return maps.float().mean((-2, -1))


@contextmanager
def evaluation_mode(model: nn.Module, *, batch_statistics: bool = False) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards the mode that the model had before.

    With ``batch_statistics`` BatchNorm layers normalise by the mean and variance of the batch itself, and neither use
    nor change their running ones: for a server that has none, because they stay on the clients. A batch then holds
    more than one example, and what is computed of one depends on the others.
    """
    training = model.training
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)] if batch_statistics else []
    tracked = [layer.track_running_stats for layer in layers]
    model.eval()
    for layer in layers:
        # This pair makes the layer look at the batch and at nothing else, not even to count it.
        layer.training, layer.track_running_stats = True, False
    try:
        yield
    finally:
        for layer, before in zip(layers, tracked, strict=True):
            layer.track_running_stats = before
        model.train(training)


def cosine_distance(before: Tensor, after: Tensor) -> float:
    """How far training moved a model's outputs on one batch: mean of 1 - cos(before, after).

    Each example's output is flattened, (B, ...) to (B, D). An output that is zero before or after counts as
    0. Zhuang et al., "Performance Optimization for Federated Person Re-identification", ACM MM 2020.
    """
    # float64: after one short round the cosine is so near 1 that float32 leaves few digits of the difference.
    old, new = before.flatten(1).double(), after.flatten(1).double()
    lengths = torch.linalg.vector_norm(old, dim=1) * torch.linalg.vector_norm(new, dim=1)
    cosine = (old * new).sum(1) / torch.where(lengths > 0, lengths, torch.ones_like(lengths))
    distance = torch.where(lengths > 0, 1 - cosine.clamp(-1, 1), torch.zeros_like(cosine))
    return distance.mean().item()


def _mixed_precision(device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 where a GPU runs; its exponent range needs no loss scaling. The CPU computes in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def _layout(device: torch.device) -> torch.memory_format:
    """GPU convolutions run faster on channels-last; on the CPU it measured slower at 64x64, one thread."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def place(model: nn.Module, device: torch.device) -> None:
    """Move the model in place; the parameters stay the objects that the optimizer holds."""
    model.to(device)
    if device.type == "cuda":
        model.to(memory_format=_layout(device))


def image_layout(images: Tensor, device: torch.device) -> Tensor:
    """Images on the device, in the layout that its convolutions run fastest in."""
    return images.to(device, non_blocking=True).contiguous(memory_format=_layout(device))
