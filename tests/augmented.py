"""Crops of a box as augmentation changes them: about their centre, which a shift alone moves."""

import numpy as np

from fedgh_app.pose.data.crops import PADDING, compose, crop_matrix, similarity_matrix


def augmented_crop(
    box: tuple[float, ...],
    size: tuple[int, int],
    padding: float = PADDING,
    translate: tuple[float, float] = (0.0, 0.0),
    **changes: float,
) -> np.ndarray:
    """The map (2, 3) from image to crop: `changes` as in `similarity_matrix`, then a shift by a fraction of `size`."""
    middle = (np.array(size) - 1) / 2
    change = similarity_matrix(middle, middle + np.multiply(translate, size), **changes)
    return compose(change, crop_matrix(box, size, padding))
