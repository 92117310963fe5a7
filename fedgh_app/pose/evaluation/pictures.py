"""Test images with what a model finds on them."""

from pathlib import Path

import cv2
import numpy as np
import torch

from fedgh_app.pose.data.batches import Batches
from fedgh_app.pose.data.cache import CropCache
from fedgh_app.pose.data.crops import apply_affine
from fedgh_app.pose.models.decoding import Decode
from fedgh_app.pose.prediction.drawing import LEGEND, contact_sheet, draw_comparison
from fedgh_app.pose.training import Permutation, find_keypoints
from fedgh_app.vision.images import read_image, write_image


def predictions(
    model: torch.nn.Module,
    cache: CropCache,
    path: Path,
    decode: Decode,
    flip_permutation: Permutation | None = None,
    count: int = 12,
) -> None:
    """Predicted and true keypoints drawn on test images, spread over the whole test split."""
    test = cache.indices("test")
    if len(test) == 0:
        return
    chosen = test[np.linspace(0, len(test) - 1, min(count, len(test))).round().astype(int)]
    batch = next(iter(Batches(cache, chosen, batch_size=len(chosen), seed=0, shuffle=False)))
    found = find_keypoints(model, batch.images, decode, flip_permutation=flip_permutation).coordinates
    tiles = []
    for place, index in enumerate(chosen):
        # Drawn on the original image, where a person can judge it; the crop that the model saw is tiny.
        image = cv2.cvtColor(read_image(Path(cache.images[index])), cv2.COLOR_RGB2BGR).astype(np.uint8, copy=False)
        to_image = _input_to_image(cache, int(index))
        truth, prediction = (apply_affine(points[place].numpy(), to_image) for points in (batch.keypoints, found))
        visible = batch.visible[place].numpy()
        tiles.append(draw_comparison(image, truth=truth, prediction=prediction, visible=visible, spec=cache.spec))
    write_image(path, contact_sheet(tiles, columns=4, legend=LEGEND))


def _input_to_image(cache: CropCache, index: int) -> np.ndarray:
    """The (2, 3) map from the unaugmented input, the middle of the cached crop, to the original image."""
    matrix = cache.to_image[index].copy()
    margins = [(side - inner) / 2 for side, inner in zip(cache.crops.shape[1:3], cache.input_size, strict=True)]
    matrix[:, 2] += matrix[:, :2] @ np.array(margins[::-1])
    return matrix
