from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedgh_app.pose.data.augmentation import HALF_ZOOM, YIQ, Augmentation, Occluders
from fedgh_app.pose.data.batches import MEAN, STD, Batches
from fedgh_app.pose.data.cache import CropCache
from fedgh_app.pose.data.records import load_spec

LSPET = load_spec("lspet")
UPPER = np.isin(np.arange(14), LSPET.upper_body)


def people(count: int = 20) -> CropCache:
    """Crops of 96 x 96 for inputs of 64 x 64, noise between 60 and 180, with people of 14 joints.

    The upper half is 24 px wide and high, the lower one 18 x 32 and below it.
    """
    generator = np.random.default_rng(0)
    keypoints = generator.uniform(0, 1, (count, 14, 2)) * np.where(UPPER[:, None], [24, 24], [18, 32])
    keypoints += np.where(UPPER[:, None], [36, 20], [40, 44])
    # Corners that make the halves exactly that large.
    keypoints[:, [6, 7]] = [[36, 20], [60, 44]]
    keypoints[:, [0, 1]] = [[40, 44], [58, 76]]
    names = np.array([str(i) for i in range(count)])
    return CropCache(
        crops=generator.integers(60, 180, (count, 96, 96, 3), dtype=np.uint8),
        keypoints=keypoints.astype(np.float32),
        visible=np.ones((count, 14), dtype=bool),
        reference_length=np.full(count, 20.0, dtype=np.float32),
        to_image=np.tile(np.eye(2, 3), (count, 1, 1)),
        split=names,
        group=names,
        ids=names,
        images=names,
        attributes={},
        bad=[],
        spec=LSPET,
        input_size=(64, 64),
        fingerprint="",
    )


def gather(cache: CropCache, augmentation: Augmentation, seed: int = 0, batch_size: int = 8) -> dict[str, np.ndarray]:
    """The first epoch in the cache's order; `pixels` are the images before normalisation."""
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "shuffle": False}
    found = list(Batches(cache, range(len(cache)), augmentation=augmentation, **options))
    names = ("images", "keypoints", "visible", "reference_length")
    got = {name: torch.cat([getattr(batch, name) for batch in found]).numpy() for name in names}
    return got | {"pixels": (got["images"].transpose(0, 2, 3, 1) * STD + MEAN) * 255}


def plain(cache: CropCache) -> dict[str, np.ndarray]:
    return gather(cache, Augmentation())


def test_what_is_off_draws_nothing() -> None:
    cache, index = people(), np.arange(20)
    geometry = Augmentation(rotation_deg=30, scale=0.25, translate=0.05, flip_probability=0.5)
    generator, expected = np.random.default_rng(1), np.random.default_rng(1)
    drawn = geometry.draw(cache, index, generator)
    expected.uniform(-1, 1, (4, 20))
    flips = expected.uniform(size=20) < 0.5
    assert generator.random() == expected.random()
    assert drawn.occluders is None and drawn.tints is None
    np.testing.assert_array_equal(drawn.flips, flips)
    # And what comes later leaves alone what came before.
    more = replace(geometry, occlusion_probability=0.5, hue=0.1)
    again = more.draw(cache, index, np.random.default_rng(1))
    np.testing.assert_array_equal(again.matrices, drawn.matrices)


def test_an_epoch_does_not_depend_on_the_batch_size() -> None:
    strong = Augmentation(45, 0.35, 0.05, 0.5, 0.5, 9, 0.5, 0.4, 0.4, 0.4, 0.4, 0.1)
    one, other = gather(people(), strong, batch_size=3), gather(people(), strong, batch_size=20)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    assert not np.array_equal(one["images"], gather(people(), strong, seed=1)["images"])


def test_a_rectangle_of_noise_by_hand() -> None:
    noise = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    corner, size, source = np.array([[0, 0], [1, 2]]), np.array([[0, 0], [2, 3]]), np.array([[3, 4], [2, 1]])
    pixels = np.full((1, 4, 5, 3), 200, dtype=np.uint8)
    Occluders(corner, size, source, noise).paint(pixels, first=1)
    expected = np.full((4, 5, 3), 200, dtype=np.uint8)
    expected[1:3, 2:5] = noise[2:4, 1:4]
    np.testing.assert_array_equal(pixels[0], expected)
    untouched = np.full((1, 4, 5, 3), 200, dtype=np.uint8)
    Occluders(corner, size, source, noise).paint(untouched, first=0)
    assert (untouched == 200).all()


def test_occlusion_hides_pixels_and_no_keypoint() -> None:
    cache = people(200)
    before, after = plain(cache), gather(cache, Augmentation(occlusion_probability=0.5, occlusion_size=0.5))
    for name in ("keypoints", "visible", "reference_length"):
        np.testing.assert_array_equal(before[name], after[name])
    changed = (np.abs(before["pixels"] - after["pixels"]) > 0.5).any(-1)
    hidden = [np.argwhere(each) for each in changed if each.any()]
    assert 0.4 < len(hidden) / 200 < 0.6
    sides = np.array([each.max(0) - each.min(0) + 1 for each in hidden])
    # A rectangle of noise: nearly all that lies between its outermost pixels is another value than before.
    assert all(len(each) > 0.9 * np.prod(side) for each, side in zip(hidden, sides, strict=True))
    assert sides.min() >= 15 and sides.max() <= 32 and sides.min() < 20 and sides.max() > 28
    middles = np.array([each.mean(0) for each in hidden])
    assert (middles.min(0) < 16).all() and (middles.max(0) > 48).all()
    places = {tuple(each.min(0)) for each in hidden}
    assert len(places) > 0.9 * len(hidden)


def test_brightness_is_one_factor_for_a_picture() -> None:
    cache = people()
    ratio = gather(cache, Augmentation(brightness=0.3))["pixels"] / plain(cache)["pixels"]
    factors = np.median(ratio, axis=(1, 2, 3))
    assert np.abs(ratio - factors[:, None, None, None]).max() < 0.02
    assert 0.7 <= factors.min() < 0.8 and 1.2 < factors.max() <= 1.3


def test_contrast_is_about_the_mean_luma() -> None:
    cache = people()
    before, after = plain(cache)["pixels"], gather(cache, Augmentation(contrast=0.4))["pixels"]
    mean = (before @ YIQ[0]).mean((1, 2))[:, None, None, None]
    factors = ((after - mean) * (before - mean)).sum((1, 2, 3)) / ((before - mean) ** 2).sum((1, 2, 3))
    np.testing.assert_allclose(after, mean + factors[:, None, None, None] * (before - mean), atol=1)
    assert 0.6 <= factors.min() < 0.75 and 1.25 < factors.max() <= 1.4


def test_saturation_is_about_grey_and_hue_turns_around_it() -> None:
    cache = people()
    before = plain(cache)["pixels"]
    luma = (before @ YIQ[0])[..., None]
    after = gather(cache, Augmentation(saturation=0.5))["pixels"]
    factors = ((after - luma) * (before - luma)).sum((1, 2, 3)) / ((before - luma) ** 2).sum((1, 2, 3))
    np.testing.assert_allclose(after, luma + factors[:, None, None, None] * (before - luma), atol=1)
    assert 0.5 <= factors.min() < 0.7 and 1.3 < factors.max() <= 1.5

    after = gather(cache, Augmentation(hue=0.1))["pixels"]
    np.testing.assert_allclose((after @ YIQ[0])[..., None], luma, atol=1)
    old, new = ((pixels @ YIQ[1:].T) @ [1, 1j] for pixels in (before, after))
    turn = np.angle((new * old.conj()).sum((1, 2))) / (2 * np.pi)
    np.testing.assert_allclose(new, old * np.exp(2j * np.pi * turn)[:, None, None], atol=2)
    assert -0.1 <= turn.min() < -0.06 and 0.06 < turn.max() <= 0.1
    grey = replace(cache, crops=np.full_like(cache.crops, 100))
    np.testing.assert_allclose(gather(grey, Augmentation(hue=0.5, saturation=1))["pixels"], 100, atol=0.51)


def halves(got: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Which samples (N,) show the upper half by its middle, and which the lower."""
    middle = np.array([31.5, 31.5])
    found = [got["keypoints"][:, half].mean(1) for half in (UPPER, ~UPPER)]
    upper, lower = (np.abs(mean - middle).max(1) < 1e-3 for mean in found)
    return upper, lower


def test_a_half_body_fills_the_input() -> None:
    cache = people(400)
    got = gather(cache, Augmentation(half_body_probability=0.5))
    upper, lower = halves(got)
    assert not (upper & lower).any()
    assert 0.2 < upper.mean() < 0.3 and 0.2 < lower.mean() < 0.3
    # 1.5 x 24 px of the crop fill 64 px of the input, by 64/36; 1.5 x 32 by 64/48; the others keep their size.
    zoom = got["reference_length"] / 20
    np.testing.assert_allclose(zoom, np.select([upper, lower], [64 / 36, 64 / 48], 1.0), rtol=1e-6)
    rest = ~(upper | lower)
    np.testing.assert_array_equal(got["images"][rest], gather(cache, Augmentation(scale=1e-9))["images"][rest])
    # What lies outside the input is not asked for, what is in it stays, also of the other half.
    inside = ((got["keypoints"] >= -0.5) & (got["keypoints"] <= 63.5)).all(-1)
    np.testing.assert_array_equal(got["visible"], inside)
    assert inside[rest].all() and not inside[upper].all() and inside[upper][:, ~UPPER].any()


def test_half_bodies_need_halves_and_enough_of_both_person_and_half() -> None:
    always = Augmentation(half_body_probability=1.0)
    cache = people()
    nothing = gather(cache, Augmentation(scale=1e-9))

    whole = gather(replace(cache, spec=replace(LSPET, upper_body=())), always)
    np.testing.assert_array_equal(whole["images"], nothing["images"])

    def seen(joints: np.ndarray) -> CropCache:
        # What nobody sees may have any coordinates.
        unseen = np.where(joints[:, None], cache.keypoints, np.nan).astype(np.float32)
        return replace(cache, keypoints=unseen, visible=np.tile(joints, (20, 1)))

    few = gather(seen(np.arange(14) < 8), always)  # eight of the nine that are asked for
    np.testing.assert_array_equal(few["images"], nothing["images"])
    mostly_upper = UPPER | np.isin(np.arange(14), [0, 1])  # two of the lower half: too few for a half
    got = seen(mostly_upper)
    assert halves(gather(got, always))[0].all()


def test_a_half_body_is_never_enlarged_more_than_twice() -> None:
    cache = people()
    close = replace(cache, keypoints=(cache.keypoints * 0.1 + 40).astype(np.float32))
    got = gather(close, Augmentation(half_body_probability=1.0))
    np.testing.assert_allclose(got["reference_length"] / 20, HALF_ZOOM)


@pytest.mark.parametrize("name", ["lspet", "mpii", "coco"])
def test_a_keypoint_and_its_mirror_image_are_in_the_same_half(name: str) -> None:
    spec = load_spec(name)
    assert 0 < len(spec.upper_body) < spec.num_keypoints
    assert all((left in spec.upper_body) == (right in spec.upper_body) for left, right in spec.flip_pairs)
    lower = {name for j, name in enumerate(spec.keypoints) if j not in spec.upper_body}
    assert {"left_knee", "right_ankle", "left_hip"} <= lower
    assert not lower & {"left_wrist", "right_shoulder", "nose", "head_top", "neck", "upper_neck", "thorax"}
