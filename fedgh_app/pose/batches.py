"""Training and evaluation batches, warped from the crop cache straight to the network's input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from fedgh_app.pose import crops as cropping
from fedgh_app.pose.cache import CropCache
from fedgh_app.pose.errors import UserError

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


@dataclass(frozen=True)
class Augmentation:
    """Random geometry for training; the default changes nothing.

    Args:
        rotation_deg: largest angle in degrees; drawn uniformly from [-rotation_deg, rotation_deg].
        scale: largest relative change of size; the factor is drawn uniformly from [1 - scale, 1 + scale].
        translate: largest shift as a fraction of the input's width and height, drawn for each uniformly.
        flip_probability: how often a sample is mirrored, left and right keypoints changing places.
    """

    rotation_deg: float = 0.0
    scale: float = 0.0
    translate: float = 0.0
    flip_probability: float = 0.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("rotation_deg", 0, 180),
            ("scale", 0, 0.9),
            ("translate", 0, 1),
            ("flip_probability", 0, 1),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise UserError(f"augmentation.{name}={value}, expected a number from {low} to {high}")

    @property
    def is_identity(self) -> bool:
        """Whether samples pass unchanged."""
        return self == Augmentation()


class Batches:
    """An iterable over batches of the cache's records `indices`.

    Order and augmentation are a function of `seed` and of the pass: the n-th time this object is iterated it
    draws the n-th epoch, and a new object with the same seed repeats them all. Draws belong to a place in the
    epoch's order, so the batch size does not change them.

    Args:
        cache: where the crops are.
        indices: which records, as positions in the cache.
        batch_size: samples in a batch, B.
        input_size: (h, w) of the network's input; None takes the cache's own.
        augmentation: random geometry; None for none. A keypoint that it pushes out of the input is marked
            invisible, as there is nothing to learn from it.
        seed: of the order and the augmentation.
        shuffle: whether the order is random, as in training. A last batch of one sample then joins the one
            before: batch normalisation has no variance in a single sample at the deepest 1 x 1 maps.
    """

    def __init__(
        self,
        cache: CropCache,
        indices: Sequence[int] | np.ndarray,
        *,
        batch_size: int,
        input_size: tuple[int, int] | None = None,
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
        self.input_size = cache.input_size if input_size is None else input_size
        self.augmentation = Augmentation() if augmentation is None else augmentation
        self.seed = seed
        self.shuffle = shuffle
        self._passes = 0
        self._bounds = self._batch_bounds()

    def __len__(self) -> int:
        return len(self._bounds)

    def __iter__(self) -> Iterator[Batch]:
        number, self._passes = self._passes, self._passes + 1
        return self.epoch(number)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch `number`, counted from 0, however often this object was iterated before."""
        # Negative seeds are folded in; a seed sequence takes none.
        generator = np.random.default_rng([self.seed % 2**64, number])
        count = len(self.indices)
        order = generator.permutation(count) if self.shuffle else np.arange(count)
        matrices, flips = self._matrices(count, generator)
        return self._batches(self.indices[order], matrices, flips)

    def _batch_bounds(self) -> list[tuple[int, int]]:
        count, size = len(self.indices), self.batch_size
        bounds = [(start, min(start + size, count)) for start in range(0, count, size)]
        if self.shuffle and len(bounds) > 1 and bounds[-1][1] - bounds[-1][0] == 1:
            bounds[-2:] = [(bounds[-2][0], count)]
        return bounds

    def _matrices(self, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Maps (count, 2, 3) from cached crop to input, and which of them mirror (count,) bool."""
        asked = self.augmentation
        rotation, scale, shift_x, shift_y = generator.uniform(-1, 1, (4, count))
        flips = generator.uniform(size=count) < asked.flip_probability
        height, width = self.input_size
        crop_height, crop_width = self.cache.crops.shape[1:3]
        cached_height, cached_width = self.cache.input_size
        # The input shows the middle of a crop, and all of it where its aspect ratio is not the cache's.
        zoom = min(width / cached_width, height / cached_height)
        target = np.stack(
            [
                (width - 1) / 2 + asked.translate * width * shift_x,
                (height - 1) / 2 + asked.translate * height * shift_y,
            ],
            axis=-1,
        )
        matrices = cropping.similarity_matrix(
            np.array([(crop_width - 1) / 2, (crop_height - 1) / 2]),
            target,
            magnification=zoom * (1 + asked.scale * scale),
            rotation_deg=asked.rotation_deg * rotation,
            flip=flips,
        )
        return matrices, flips

    def _batches(self, index: np.ndarray, matrices: np.ndarray, flips: np.ndarray) -> Iterator[Batch]:
        for start, stop in self._bounds:
            yield self._batch(index[start:stop], matrices[start:stop], flips[start:stop])

    def _batch(self, index: np.ndarray, matrices: np.ndarray, flips: np.ndarray) -> Batch:
        cache = self.cache
        height, width = self.input_size
        keypoints = cropping.apply_affine(cache.keypoints[index], matrices)
        visible = cache.visible[index]
        if flips.any():
            permutation = cache.spec.flip_permutation
            keypoints[flips] = keypoints[flips][:, permutation]
            visible[flips] = visible[flips][:, permutation]
        if not self.augmentation.is_identity:
            edge = np.array([width, height]) - 0.5
            visible &= ((keypoints >= -0.5) & (keypoints <= edge)).all(axis=-1)
        lengths = cache.reference_length[index] * cropping.magnification(matrices)
        return Batch(
            images=normalised(self._pixels(index, matrices)),
            keypoints=torch.from_numpy(keypoints.astype(np.float32)),
            visible=torch.from_numpy(visible),
            reference_length=torch.from_numpy(lengths.astype(np.float32)),
            index=torch.from_numpy(index.copy()),
        )

    def _pixels(self, index: np.ndarray, matrices: np.ndarray) -> np.ndarray:
        """Inputs (B, h, w, 3) uint8."""
        height, width = self.input_size
        crops = np.asarray(self.cache.crops)  # a plain view: indexing a memmap costs more than the warp
        if self.augmentation.is_identity and self.input_size == self.cache.input_size:
            top, left = (crops.shape[1] - height) // 2, (crops.shape[2] - width) // 2
            return crops[:, top : top + height, left : left + width][index]
        pixels = np.empty((len(index), height, width, 3), dtype=np.uint8)
        for sample, (position, matrix) in enumerate(zip(index, matrices, strict=True)):
            # Black where the crop ends: a repeated or mirrored border could show a second wrist.
            cv2.warpAffine(
                crops[position],
                matrix,
                (width, height),
                dst=pixels[sample],
                flags=cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=(0, 0, 0),
            )
        return pixels


def normalised(pixels: np.ndarray) -> Tensor:
    """Images (B, 3, h, w) float32 of pixels (B, h, w, 3) uint8."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    scale = torch.tensor(STD).mul_(255).reciprocal_().view(3, 1, 1)
    shift = (torch.tensor(MEAN) / torch.tensor(STD)).view(3, 1, 1)
    return images.mul_(scale).sub_(shift)
