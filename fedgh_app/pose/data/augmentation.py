"""Random changes to training samples: where a crop is seen from, its colours, what stands in front of it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from fedgh_app.errors import UserError
from fedgh_app.pose.data import crops as cropping
from fedgh_app.pose.data.cache import CropCache

# A half body is shown with this margin around its joints, as in HRNet's code, and if they are at least so many.
HALF_MARGIN = 1.5
HALF_JOINTS = 3
# Beyond twice its size a cached crop, which has no more pixels than the input, is a blur.
HALF_ZOOM = 2.0
# What a strength may be, where that is not 0 to 1.
RANGES = {"rotation_deg": (0, 180), "scale": (0, 0.9), "half_body_min_visible": (HALF_JOINTS, 1000), "hue": (0, 0.5)}

# RGB to luma and the two chrominances of YIQ: hue and saturation turn and stretch the latter plane.
YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


@dataclass(frozen=True)
class Augmentation:
    """What is drawn at random for each training sample; the default changes nothing.

    Half bodies: Wang et al., "Multi-Stage Pose Network" (Li et al., 2019) and HRNet (Sun et al., CVPR 2019), whose
    code this follows: the input shows the upper or the lower half of a person alone. Occlusion: random erasing
    (Zhong et al., AAAI 2020), a rectangle of noise. What it hides stays labelled: finding hidden keypoints from the
    rest of the body is what it teaches.

    Args:
        rotation_deg: largest angle in degrees; drawn uniformly from [-rotation_deg, rotation_deg].
        scale: largest relative change of size; the factor is drawn uniformly from [1 - scale, 1 + scale].
        translate: largest shift as a fraction of the input's width and height, drawn for each uniformly.
        flip_probability: how often a sample is mirrored, left and right keypoints changing places.
        half_body_probability: how often a person of whom enough is visible is reduced to one half. Where the data
            set has no `upper_body` there are no halves, and nothing happens.
        half_body_min_visible: visible keypoints of a person of whom a half is enough.
        occlusion_probability: how often a rectangle of noise hides a part of the input.
        occlusion_size: largest side of the rectangle as a fraction of the input's; each side is drawn uniformly
            between half of that and all of it.
        brightness: largest relative change, the factor drawn uniformly from [1 - brightness, 1 + brightness].
        contrast: likewise, of the distance of each value to the picture's mean luma.
        saturation: likewise, of the distance of each colour to grey.
        hue: largest turn of the hues, in turns of the colour wheel.
    """

    rotation_deg: float = 0.0
    scale: float = 0.0
    translate: float = 0.0
    flip_probability: float = 0.0
    half_body_probability: float = 0.0
    half_body_min_visible: int = 9
    occlusion_probability: float = 0.0
    occlusion_size: float = 0.4
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            low, high = RANGES.get(name, (0, 1))
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise UserError(f"augmentation.{name}={value}, expected a number from {low} to {high}")

    @property
    def moves(self) -> bool:
        """Whether pixels may change their place."""
        return any((self.rotation_deg, self.scale, self.translate, self.flip_probability, self.half_body_probability))

    def draw(self, cache: CropCache, index: np.ndarray, generator: np.random.Generator) -> Drawn:
        """Draw for the cache's records `index` (N,).

        What is off draws nothing, and each draws what it needs for all samples: so changing a strength changes
        no other draw.
        """
        rotation, scale, shift_x, shift_y = generator.uniform(-1, 1, (4, len(index)))
        flips = generator.uniform(size=len(index)) < self.flip_probability
        height, width = cache.input_size
        crop_height, crop_width = cache.crops.shape[1:3]
        centre, zoom = np.array([(crop_width - 1) / 2, (crop_height - 1) / 2]), np.ones(len(index))
        if self.half_body_probability:
            centre, zoom = self._half_bodies(cache, index, centre, generator)
        x, y = (width - 1) / 2 + self.translate * width * shift_x, (height - 1) / 2 + self.translate * height * shift_y
        zoom, turn = zoom * (1 + self.scale * scale), self.rotation_deg * rotation
        target = np.stack([x, y], axis=-1)
        matrices = cropping.similarity_matrix(centre, target, magnification=zoom, rotation_deg=turn, flip=flips)
        occluders = self._occluders(len(index), cache.input_size, generator) if self.occlusion_probability else None
        jitters = any((self.brightness, self.contrast, self.saturation, self.hue))
        return Drawn(matrices, flips, occluders, self._tints(len(index), generator) if jitters else None)

    def _half_bodies(
        self, cache: CropCache, index: np.ndarray, centre: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Centre (N, 2) in the crop and magnification (N,) of each sample, of those reduced to a half its own."""
        wanted, side = generator.uniform(size=(2, len(index)))
        keypoints, visible = cache.keypoints[index], cache.visible[index]
        upper = np.isin(np.arange(visible.shape[1]), cache.spec.upper_body)
        half = visible & np.where(side[:, None] < 0.5, upper, ~upper)
        half = np.where(half.sum(1, keepdims=True) >= HALF_JOINTS, half, visible & ~half)  # else the other half
        whole = (wanted < self.half_body_probability) & (visible.sum(1) >= self.half_body_min_visible)
        reduced = whole & (half.sum(1) >= HALF_JOINTS) & upper.any()
        half[~reduced] = True  # no half: all joints, of which nothing is used
        points = np.where(half[..., None], keypoints, np.nan)
        extent = np.maximum(np.nanmax(points, axis=1) - np.nanmin(points, axis=1), 1.0)
        closer = (np.array(cache.input_size[::-1]) / (HALF_MARGIN * extent)).min(1).clip(1.0, HALF_ZOOM)
        return np.where(reduced[:, None], np.nanmean(points, axis=1), centre), np.where(reduced, closer, 1.0)

    def _occluders(self, count: int, input_size: tuple[int, int], generator: np.random.Generator) -> Occluders:
        present, *drawn = generator.uniform(size=(7, count))
        sides = np.array(input_size)
        size = np.rint(self.occlusion_size * (0.5 + 0.5 * np.stack(drawn[:2], -1)) * sides).astype(np.int64)
        size[present >= self.occlusion_probability] = 0
        room = sides + 1 - size
        corner, source = (np.floor(np.stack(pair, -1) * room).astype(np.int64) for pair in (drawn[2:4], drawn[4:]))
        return Occluders(corner, size, source, generator.integers(0, 256, (*input_size, 3), dtype=np.uint8))

    def _tints(self, count: int, generator: np.random.Generator) -> Tints:
        brightness, contrast, saturation, hue = generator.uniform(-1, 1, (4, count))
        stretch, angle = 1 + self.saturation * saturation, 2 * np.pi * self.hue * hue
        turn = np.zeros((count, 3, 3))
        turn[:, 0, 0] = 1
        turn[:, 1, 1] = turn[:, 2, 2] = stretch * np.cos(angle)
        turn[:, 2, 1] = stretch * np.sin(angle)
        turn[:, 1, 2] = -turn[:, 2, 1]
        colours = np.linalg.inv(YIQ) @ turn @ YIQ
        return Tints(colours, 1 + self.brightness * brightness, 1 + self.contrast * contrast)


@dataclass(frozen=True, eq=False)
class Occluders:
    """Rectangles of noise in front of N samples.

    `corner`, `size` and `source` (N, 2) int64 are row and column: the top left pixel in the input, the sides (0 for
    none), and where in `noise` (h, w, 3) uint8 the rectangle's pixels come from.
    """

    corner: np.ndarray
    size: np.ndarray
    source: np.ndarray
    noise: np.ndarray

    def paint(self, pixels: np.ndarray, first: int) -> None:
        """Hide a part of each of the samples `first` and following, inputs (B, h, w, 3) uint8, in place."""
        for sample, image in enumerate(pixels, start=first):
            (y, x), (height, width), (v, u) = self.corner[sample], self.size[sample], self.source[sample]
            image[y : y + height, x : x + width] = self.noise[v : v + height, u : u + width]


@dataclass(frozen=True, eq=False)
class Tints:
    """Changes of colour of N samples: `colours` (N, 3, 3) on RGB, `brightness` and `contrast` (N,) factors."""

    colours: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray

    def paint(self, pixels: np.ndarray, first: int) -> None:
        """Recolour the samples `first` and following, inputs (B, h, w, 3) uint8 RGB, in place."""
        for sample, image in enumerate(pixels, start=first):
            brightness, contrast = self.brightness[sample], self.contrast[sample]
            matrix = np.empty((3, 4))
            matrix[:, :3] = brightness * contrast * self.colours[sample]
            matrix[:, 3] = brightness * (1 - contrast) * (YIQ[0] @ cv2.mean(image)[:3])
            cv2.transform(image, matrix, dst=image)


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn for N samples: `matrices` (N, 2, 3) from cached crop to input, which of them mirror `flips`
    (N,) bool, what is in front of them, and their colours; None for as they are.
    """

    matrices: np.ndarray
    flips: np.ndarray
    occluders: Occluders | None
    tints: Tints | None

    def paint(self, pixels: np.ndarray, first: int) -> None:
        """Change the pixels (B, h, w, 3) uint8 RGB of the samples `first` and following, in place."""
        # What stands in front of a picture has its own colours.
        for layer in (self.tints, self.occluders):
            if layer is not None:
                layer.paint(pixels, first)
