import cv2
import numpy as np
import pytest
from augmented import augmented_crop
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgh_app.pose.data.crops import (
    apply_affine,
    compose,
    crop_image,
    crop_matrix,
    invert_affine,
    magnification,
    similarity_matrix,
)

angles = st.floats(-180, 180)
scales = st.floats(0.5, 2)


def draw_dot(width: int, height: int, x: float, y: float, sigma: float) -> np.ndarray:
    """A smooth bright dot on black, its centre at (x, y) with pixel centres at integers."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    value = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return np.repeat(value.astype(np.uint8)[:, :, None], 3, axis=2)


def centroid(image: np.ndarray) -> np.ndarray:
    weight = image[:, :, 0].astype(np.float64)
    columns, rows = np.meshgrid(np.arange(image.shape[1]), np.arange(image.shape[0]))
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


def test_by_hand() -> None:
    # A box of 80 x 40 around (100, 60), padding 1.25: 100 px of the image fill 50 px of the crop.
    matrix = crop_matrix((60, 40, 80, 40), (50, 50))
    np.testing.assert_allclose(matrix, [[0.5, 0, 24.5 - 50], [0, 0.5, 24.5 - 30]])
    np.testing.assert_allclose(apply_affine(np.array([100, 60]), matrix), [24.5, 24.5])


def test_flip_is_the_exact_mirror_of_the_crop() -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    box = (30, 20, 40, 40)  # padding 1 and size 40: no interpolation at all
    plain = crop_image(image, crop_matrix(box, (41, 41), padding=41 / 40), (41, 41))
    mirrored = crop_image(image, augmented_crop(box, (41, 41), padding=41 / 40, flip=True), (41, 41))
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])
    np.testing.assert_array_equal(plain, image[20:61, 30:71])


def test_rotation_is_clockwise_and_scale_enlarges() -> None:
    right = np.array([110.0, 60.0])  # ten pixels to the right of the box's centre
    turned = apply_affine(right, augmented_crop((60, 40, 80, 40), (50, 50), rotation_deg=90))
    np.testing.assert_allclose(turned, [24.5, 24.5 + 5], atol=1e-9)  # now below it: y points down
    larger = apply_affine(right, augmented_crop((60, 40, 80, 40), (50, 50), magnification=2))
    np.testing.assert_allclose(larger, [24.5 + 10, 24.5])
    moved = apply_affine(right, augmented_crop((60, 40, 80, 40), (50, 50), flip=True, translate=(0.1, -0.2)))
    np.testing.assert_allclose(moved, [24.5 - 5 + 5, 24.5 - 10])


def test_aspect_ratio_is_kept() -> None:
    matrix = crop_matrix((0, 0, 10, 40), (48, 64), padding=1)
    corners = apply_affine(np.array([[0, 0], [10, 40]]), matrix)
    np.testing.assert_allclose(corners[1] - corners[0], [16, 64])  # the height binds, the width is not stretched
    np.testing.assert_allclose(corners.mean(axis=0), [23.5, 31.5])


@settings(max_examples=60, deadline=None)
@given(
    x=st.floats(-25, 25),
    y=st.floats(-25, 25),
    rotation=angles,
    scale=st.floats(0.3, 1.6),
    flip=st.booleans(),
    size=st.sampled_from([(64, 64), (48, 64), (65, 43)]),
)
def test_pixels_and_keypoints_move_alike(
    x: float, y: float, rotation: float, scale: float, flip: bool, size: tuple[int, int]
) -> None:
    """A dot's centroid in the crop is its mapped centre, also where area averaging comes first."""
    box = (100, 80, 100, 80)
    matrix = augmented_crop(box, size, rotation_deg=rotation, magnification=scale, flip=flip)
    centre = np.array([150 + x, 120 + y])
    sigma = 2.0 / float(magnification(matrix))  # two pixels in the crop
    image = draw_dot(300, 240, centre[0], centre[1], sigma)
    expected = apply_affine(centre, matrix)
    if ((expected < 8) | (expected > np.array(size) - 9)).any():
        return  # cut by the border
    np.testing.assert_allclose(centroid(crop_image(image, matrix, size)), expected, atol=0.1)


def test_shrinking_averages() -> None:
    """A pixel-wise checkerboard becomes grey, not the moire that four-point sampling would make of it."""
    rows, columns = np.indices((400, 400))
    board = np.repeat((255 * ((rows + columns) % 2)).astype(np.uint8)[:, :, None], 3, axis=2)
    matrix = crop_matrix((50, 50, 300, 300), (43, 43), padding=1)
    crop = crop_image(board, matrix, (43, 43))
    assert np.abs(crop.astype(int) - 127).max() < 20
    aliased = cv2.warpAffine(board, matrix, (43, 43), flags=cv2.INTER_LINEAR)
    assert aliased.astype(int).std() > 3 * crop.astype(int).std()


@pytest.mark.parametrize("box", [(-300, -300, 200, 200), (-50, 20, 100, 60), (0, 0, 30, 20), (95, 75, 500, 500)])
def test_outside_of_the_image_is_black(box: tuple[int, int, int, int]) -> None:
    image = np.full((80, 100, 3), 200, dtype=np.uint8)
    matrix = crop_matrix(box, (32, 32))
    crop = crop_image(image, matrix, (32, 32))
    columns, rows = np.meshgrid(np.arange(32), np.arange(32))
    source = apply_affine(np.stack([columns, rows], axis=-1), invert_affine(matrix))
    slack = 2 / float(magnification(matrix))
    inside = ((source > slack) & (source < np.array([99, 79]) - slack)).all(axis=-1)
    outside = ((source < -slack) | (source > np.array([99, 79]) + slack)).any(axis=-1)
    assert (crop[outside] == 0).all()
    assert (np.abs(crop[inside].astype(int) - 200) <= 1).all()


@given(angle=angles, scale=scales, flip=st.booleans(), other=angles)
def test_affine_algebra(angle: float, scale: float, flip: bool, other: float) -> None:
    points = np.random.default_rng(3).normal(size=(5, 2)) * 40
    first = augmented_crop((10, 20, 30, 40), (64, 48), rotation_deg=angle, magnification=scale, flip=flip)
    second = augmented_crop((1, 2, 50, 40), (32, 32), rotation_deg=other)
    there = apply_affine(points, first)
    np.testing.assert_allclose(apply_affine(there, invert_affine(first)), points, atol=1e-8)
    np.testing.assert_allclose(apply_affine(points, compose(second, first)), apply_affine(there, second), atol=1e-8)
    length = np.linalg.norm(there[0] - there[1]) / np.linalg.norm(points[0] - points[1])
    np.testing.assert_allclose(magnification(first), length)
    assert (np.linalg.det(first[:, :2]) < 0) == flip


def test_batched_matrices_equal_single_ones() -> None:
    generator = np.random.default_rng(1)
    source, target = generator.normal(size=(4, 2)), generator.normal(size=(4, 2))
    angle, flip = generator.uniform(-90, 90, 4), np.array([True, False, True, False])
    together = similarity_matrix(source, target, rotation_deg=angle, flip=flip, magnification=1.5)
    for i in range(4):
        alone = similarity_matrix(source[i], target[i], rotation_deg=angle[i], flip=flip[i], magnification=1.5)
        np.testing.assert_allclose(together[i], alone)
        np.testing.assert_allclose(apply_affine(source[i], alone), target[i])
