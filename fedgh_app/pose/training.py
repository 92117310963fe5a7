"""One client's local training, and the evaluation of a model on a set of examples.

On the CPU both repeat bit for bit: same weights, same batches, same number of threads, same numbers.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedgh_app.errors import UserError
from fedgh_app.pose.evaluation.metrics import Evaluation, heatmap_hits
from fedgh_app.pose.models.decoding import Decode, decoder, flip_tested, mirrored_back
from fedgh_app.pose.models.heatmaps import Size
from fedgh_app.pose.models.losses import HeatmapLoss

Permutation = Sequence[int] | np.ndarray


class PoseBatch(Protocol):
    """What training and evaluation read of a batch of B crops with J keypoints."""

    @property
    def images(self) -> Tensor:
        """(B, 3, h, w), normalised."""

    @property
    def keypoints(self) -> Tensor:
        """(B, J, 2) in input pixels."""

    @property
    def visible(self) -> Tensor:
        """(B, J) bool."""

    @property
    def reference_length(self) -> Tensor:
        """(B,) in input pixels."""

    @property
    def index(self) -> Tensor:
        """(B,) place of each example in its data set."""


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
    batches: Iterable[PoseBatch] | Callable[[int], Iterable[PoseBatch]],
    loss: HeatmapLoss,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    device: torch.device | str = "cpu",
    penalty: Callable[[nn.Module], Tensor] | None = None,
    guide: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    squared_losses: bool = False,
) -> Training:
    """Train ``model`` in place.

    Parameters
    ----------
    batches
        The batches of an epoch, or a function from the epoch's number, 0 ... epochs - 1, to them: a set of
        batches whose order is a function of its seed comes in the same order each time it is walked through.
    loss
        ``(heatmaps, keypoints, visible, input_size) -> scalar``.
    optimizer
        Already built over the parameters of ``model``.
    penalty
        A term of the parameters that the local objective adds to the loss of each batch, such as FedProx's.
        It is not part of the reported loss, which so stays comparable between objectives.
    guide
        ``(images, maps, visible) -> scalar``: a term of what the model makes of the images, (B, J, h, w) float32, such
        as a teacher's (`hhd.Guide`). It too is not part of the reported loss.
    squared_losses
        Measure ``Training.loss_rms``, the statistical utility of Oort (Lai et al., OSDI 2021) per example.
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
            images, keypoints, visible = _to_device(batch, device)
            with _mixed_precision(device):
                maps = model(images)
            maps = maps.float()
            value = loss(maps, keypoints, visible, _size(images))
            objective = value if penalty is None else value + penalty(model)
            if guide is not None:
                objective = objective + guide(images, maps, visible)
            optimizer.zero_grad(set_to_none=True)
            objective.backward()
            optimizer.step()
            total += value.detach() * len(images)
            if squared_losses:
                each = loss.per_example(maps.detach(), keypoints, visible, _size(images))
                squares += each.double().square().sum()
            steps += 1
            examples += len(images)
    if examples == 0:
        raise UserError(f"training: found 0 examples in {epochs} epochs, expected at least 1")
    return Training(
        loss=total.item() / examples,
        steps=steps,
        examples=examples,
        loss_rms=math.sqrt(squares.item() / examples) if squared_losses else None,
    )


def evaluate(
    model: nn.Module,
    batches: Iterable[PoseBatch],
    loss: HeatmapLoss,
    *,
    device: torch.device | str = "cpu",
    decode: Decode | None = None,
    flip_permutation: Permutation | None = None,
) -> Evaluation:
    """Predict every example of ``batches`` and compare with its keypoints; the model's mode stays.

    The result does not depend on how the examples are split into batches, but for the last bits of the
    arithmetic.

    Parameters
    ----------
    loss
        Of the images' own maps, also with a flip test; the same goes for the heatmap accuracy.
    decode
        How the maps are read; None for the model's own way, or the quarter shift.
    flip_permutation
        For a flip test, see `find_keypoints`.
    """
    decode = decode or decoder(model, "quarter", loss)
    integral = getattr(model, "integral", None)
    device = torch.device(device)
    place(model, device)
    columns: dict[str, list[Tensor]] = {}
    total = torch.zeros((), dtype=torch.float64, device=device)
    counted = torch.zeros((), dtype=torch.int64, device=device)
    for batch in batches:
        images, keypoints, visible = _to_device(batch, device)
        input_size = _size(images)
        prediction = find_keypoints(model, images, decode, device=device, flip_permutation=flip_permutation)
        batch_total, batch_counted = loss.total(prediction.maps, keypoints, visible, input_size)
        total += batch_total
        counted += batch_counted
        error = torch.linalg.vector_norm(prediction.coordinates - keypoints, dim=-1)
        found = {
            "distance": error / batch.reference_length.to(device)[:, None],
            "visible": visible,
            "heatmap_hit": heatmap_hits(prediction.maps, keypoints, visible, input_size, integral),
            "coordinates": prediction.coordinates,
            "scores": prediction.scores,
            "index": batch.index,
        }
        for name, value in found.items():
            columns.setdefault(name, []).append(value)
    if not columns:
        raise UserError("evaluation: found 0 examples, expected at least 1")
    arrays: dict[str, np.ndarray] = {name: torch.cat(values).cpu().numpy() for name, values in columns.items()}
    count = int(counted)
    return Evaluation(**arrays, loss=total.item() / count if count else float("nan"), loss_terms=count)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model makes of B images.

    Attributes:
        maps: (B, J, h, w) float32, of the images as they are.
        coordinates: (B, J, 2) in input pixels.
        scores: (B, J), by the decoder's own measure.
    """

    maps: Tensor
    coordinates: Tensor
    scores: Tensor


def find_keypoints(
    model: nn.Module,
    images: Tensor,
    decode: Decode,
    *,
    device: torch.device | str = "cpu",
    flip_permutation: Permutation | None = None,
) -> Prediction:
    """Keypoints of normalised images (B, 3, H, W), without gradients; the model's mode stays.

    Parameters
    ----------
    decode
        How the maps are read; see `decoding.decoder`.
    flip_permutation
        For a flip test: the order (J,) of the keypoints in a mirrored image. The coordinates are then of the images
        and of their mirror images together, see `decoding.flip_tested`, at twice the cost.
    """
    maps = predict(model, images, device=device)
    if flip_permutation is None:
        return Prediction(maps, *decode(maps, _size(images)))
    mirrored = mirrored_back(predict(model, images.flip(-1), device=device), flip_permutation)
    return Prediction(maps, *flip_tested(decode, maps, mirrored, _size(images)))


def predict(
    model: nn.Module, images: Tensor, *, device: torch.device | str = "cpu", batch_statistics: bool = False
) -> Tensor:
    """Heatmaps (B, J, h, w) float32 of images (B, 3, H, W), without gradients; see `evaluation_mode`."""
    with torch.inference_mode(), evaluation_mode(model, batch_statistics=batch_statistics):
        return heatmaps_of(model, images, torch.device(device))


def embed(
    model: nn.Module, images: Tensor, *, device: torch.device | str = "cpu", batch_statistics: bool = False
) -> Tensor:
    """Features (B, C) float32 of images (B, 3, H, W), without gradients; see `features_of`, `evaluation_mode`."""
    with torch.inference_mode(), evaluation_mode(model, batch_statistics=batch_statistics):
        return features_of(model, images, torch.device(device))


def heatmaps_of(model: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """Heatmaps (B, J, h, w) float32 of images (B, 3, H, W), in whichever mode the model is."""
    with _mixed_precision(device):
        return model(_image_layout(images, device)).float()


def features_of(model: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """The backbone's output averaged over its pixels, (B, C) float32, in whichever mode the model is."""
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise UserError(f"model: found {type(model).__name__} without a `backbone`, expected one to take features from")
    with _mixed_precision(device):
        maps = backbone(_image_layout(images, device))
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


def _image_layout(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device, non_blocking=True).contiguous(memory_format=_layout(device))


def _to_device(batch: PoseBatch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Images, keypoints and visibility on ``device``."""
    return (
        _image_layout(batch.images, device),
        batch.keypoints.to(device, non_blocking=True),
        batch.visible.to(device, non_blocking=True),
    )


def _size(images: Tensor) -> Size:
    return images.shape[-2], images.shape[-1]
