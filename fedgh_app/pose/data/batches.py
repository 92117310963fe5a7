"""Training and evaluation batches, warped from the crop cache straight to the network's input."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from fedgh_app.errors import UserError
from fedgh_app.pose.data import crops as cropping
from fedgh_app.pose.data.augmentation import Augmentation, Drawn
from fedgh_app.pose.data.cache import CropCache

# Of ImageNet's RGB values in [0, 1]; torchvision's pretrained weights expect images so normalised.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples: `images` (B, 3, h, w) float32, normalised with ImageNet's mean and deviation.

    `keypoints` (B, J, 2) float32 and `reference_length` (B,) float32 are in input pixels, `visible` is (B, J)
    bool, `index` (B,) int64 says which records of the cache these are.
    """

    images: Tensor
    keypoints: Tensor
    visible: Tensor
    reference_length: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.images)


class Batches:
    """An iterable over batches of the cache's records `indices`.

    Order and augmentation are a function of `seed` and of the pass: the n-th time this object is iterated it
    draws the n-th epoch, and a new object with the same seed repeats them all. Draws belong to a place in the
    epoch's order, so the batch size does not change them.

    A keypoint that the augmentation pushes out of the input is marked invisible, as there is nothing to learn from it;
    one that it hides is not. With `shuffle` the order is random, as in training; a last batch of one sample then joins
    the one before: batch normalisation has no variance in a single sample at the deepest 1 x 1 maps.
    """

    def __init__(
        self,
        cache: CropCache,
        indices: Sequence[int] | np.ndarray,
        *,
        batch_size: int,
        augmentation: Augmentation | None = None,
        seed: int,
        shuffle: bool,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}, expected at least 1")
        self.cache = cache
        self.indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        if self.indices.size and (self.indices.min() < 0 or self.indices.max() >= len(cache)):
            raise ValueError(f"indices reach from {self.indices.min()} to {self.indices.max()} of {len(cache)}")
        self.batch_size = batch_size
        self.augmentation = Augmentation() if augmentation is None else augmentation
        self.seed, self.shuffle, self._passes = seed, shuffle, 0
        self._bounds = self._batch_bounds()

    def __len__(self) -> int:
        return len(self._bounds)

    def __iter__(self) -> Iterator[Batch]:
        # Negative seeds are folded in; a seed sequence takes none.
        generator = np.random.default_rng([self.seed % 2**64, self._passes])
        self._passes += 1
        count = len(self.indices)
        order = generator.permutation(count) if self.shuffle else np.arange(count)
        index = self.indices[order]
        drawn = self.augmentation.draw(self.cache, index, generator)
        return (self._batch(index[start:stop], drawn, start) for start, stop in self._bounds)

    def _batch_bounds(self) -> list[tuple[int, int]]:
        count, size = len(self.indices), self.batch_size
        bounds = [(start, min(start + size, count)) for start in range(0, count, size)]
        if self.shuffle and len(bounds) > 1 and bounds[-1][1] - bounds[-1][0] == 1:
            bounds[-2:] = [(bounds[-2][0], count)]
        return bounds

    def _batch(self, index: np.ndarray, drawn: Drawn, start: int) -> Batch:
        cache = self.cache
        matrices, flips = (each[start : start + len(index)] for each in (drawn.matrices, drawn.flips))
        keypoints = cropping.apply_affine(cache.keypoints[index], matrices)
        visible = cache.visible[index]
        if flips.any():
            permutation = cache.spec.flip_permutation
            keypoints[flips] = keypoints[flips][:, permutation]
            visible[flips] = visible[flips][:, permutation]
        if self.augmentation.moves:
            visible &= cropping.inside(keypoints, cache.input_size)
        lengths = cache.reference_length[index] * cropping.magnification(matrices)
        pixels = self._pixels(index, matrices)
        drawn.paint(pixels, start)
        return Batch(
            images=normalised(pixels),
            keypoints=torch.from_numpy(keypoints.astype(np.float32)),
            visible=torch.from_numpy(visible),
            reference_length=torch.from_numpy(lengths.astype(np.float32)),
            index=torch.from_numpy(index.copy()),
        )

    def _pixels(self, index: np.ndarray, matrices: np.ndarray) -> np.ndarray:
        """Inputs (B, h, w, 3) uint8."""
        height, width = self.cache.input_size
        crops = np.asarray(self.cache.crops)  # a plain view: indexing a memmap costs more than the warp
        if not self.augmentation.moves:
            top, left = (crops.shape[1] - height) // 2, (crops.shape[2] - width) // 2
            return crops[:, top : top + height, left : left + width][index]
        pixels = np.empty((len(index), height, width, 3), dtype=np.uint8)
        for sample, (position, matrix) in enumerate(zip(index, matrices, strict=True)):
            cv2.warpAffine(crops[position], matrix, (width, height), dst=pixels[sample], **cropping.WARP)
        return pixels


def normalised(pixels: np.ndarray) -> Tensor:
    """Images (B, 3, h, w) float32 of pixels (B, h, w, 3) uint8."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    scale = torch.tensor(STD).mul_(255).reciprocal_().view(3, 1, 1)
    shift = (torch.tensor(MEAN) / torch.tensor(STD)).view(3, 1, 1)
    return images.mul_(scale).sub_(shift)
