"""Training of a pose network on labelled crops, and its evaluation: `fedgh_app.vision.training` with keypoints.

The result of an evaluation does not depend on how the examples are split into batches, but for the last bits of the
arithmetic.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedgh_app.errors import UserError
from fedgh_app.pose.data.batches import Batch
from fedgh_app.pose.evaluation.metrics import Evaluation, heatmap_hits
from fedgh_app.pose.models.decoding import Decode, decoder, flip_tested, mirrored_back
from fedgh_app.pose.models.heatmaps import size_of
from fedgh_app.pose.models.losses import HeatmapLoss
from fedgh_app.vision import training as vision
from fedgh_app.vision.training import Training, image_layout, place, predict

Permutation = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class KeypointLoss:
    """A loss of maps, as the frame of training calls it: `fedgh_app.vision.training.Loss`."""

    loss: HeatmapLoss

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Scalar loss of the maps (B, J, h, w)."""
        value: Tensor = self.loss(outputs, *labels(batch, outputs.device), size_of(batch.images))
        return value

    def per_example(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Each example's own loss, (B,)."""
        return self.loss.per_example(outputs, *labels(batch, outputs.device), size_of(batch.images))


def train(
    model: nn.Module,
    batches: Iterable[Batch] | Callable[[int], Iterable[Batch]],
    loss: HeatmapLoss,
    optimizer: torch.optim.Optimizer,
    *,
    guide: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    **options: Any,
) -> Training:
    """`fedgh_app.vision.training.train` under a ``guide``, ``(images, maps, visible) -> scalar``, as `hhd.Guide` is."""
    if guide is not None:
        options["guide"] = lambda images, maps, batch: guide(images, maps, labels(batch, maps.device)[1])
    return vision.train(model, batches, KeypointLoss(loss), optimizer, **options)


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: HeatmapLoss,
    *,
    device: torch.device | str = "cpu",
    decode: Decode | None = None,
    flip_permutation: Permutation | None = None,
) -> Evaluation:
    """Predict every example of ``batches`` and compare with its keypoints; the model's mode stays.

    The ``loss`` and the heatmap accuracy are of the images' own maps, also with a flip test; see `find_keypoints`.
    Without ``decode`` the maps are read in the model's own way, or by the quarter shift.
    """
    decode = decode or decoder(model, "quarter", loss)
    integral = getattr(model, "integral", None)
    device = torch.device(device)
    place(model, device)
    found: list[dict[str, Tensor]] = []
    total = torch.zeros((), dtype=torch.float64, device=device)
    counted = torch.zeros((), dtype=torch.int64, device=device)
    for batch in batches:
        images = image_layout(batch.images, device)
        keypoints, visible = labels(batch, device)
        input_size = size_of(images)
        prediction = find_keypoints(model, images, decode, device=device, flip_permutation=flip_permutation)
        batch_total, batch_counted = loss.total(prediction.maps, keypoints, visible, input_size)
        total += batch_total
        counted += batch_counted
        error = torch.linalg.vector_norm(prediction.coordinates - keypoints, dim=-1)
        found.append(
            {
                "distance": error / batch.reference_length.to(device)[:, None],
                "visible": visible,
                "heatmap_hit": heatmap_hits(prediction.maps, keypoints, visible, input_size, integral),
                "coordinates": prediction.coordinates,
                "scores": prediction.scores,
                "index": batch.index,
            }
        )
    if not found:
        raise UserError("evaluation: found 0 examples, expected at least 1")
    arrays = {name: torch.cat([batch[name] for batch in found]).cpu().numpy() for name in found[0]}
    count = int(counted)
    return Evaluation(**arrays, loss=total.item() / count if count else float("nan"), loss_terms=count)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model makes of B images: `maps` (B, J, h, w) float32 of the images as they are, `coordinates` (B, J, 2) in
    input pixels, and `scores` (B, J) by the decoder's own measure.
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

    With ``flip_permutation``, the order (J,) of the keypoints in a mirrored image, the coordinates are of the images
    and of their mirror images together, see `decoding.flip_tested`, at twice the cost.
    """
    maps = predict(model, images, device=device)
    if flip_permutation is None:
        return Prediction(maps, *decode(maps, size_of(images)))
    mirrored = mirrored_back(predict(model, images.flip(-1), device=device), flip_permutation)
    return Prediction(maps, *flip_tested(decode, maps, mirrored, size_of(images)))


def labels(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Keypoints (B, J, 2) and visibility (B, J) on ``device``."""
    return batch.keypoints.to(device, non_blocking=True), batch.visible.to(device, non_blocking=True)
