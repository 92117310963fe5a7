"""Skeletons on images, and sheets of such images: uint8 (h, w, 3) BGR, as OpenCV reads and writes them."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedgh_app.pose.data.records import DatasetSpec

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

TRUTH: Colour = (90, 220, 60)  # green
PREDICTION: Colour = (200, 60, 255)  # magenta: also told apart from green by colour-blind readers
LEGEND = (("truth", TRUTH), ("prediction", PREDICTION))  # for sheets of `draw_comparison`
OUTLINE: Colour = (20, 20, 20)
PAPER: Colour = (250, 250, 250)
INK: Colour = (30, 30, 30)
SHORTEST = 320  # px: smaller images are enlarged before drawing, so that lines stay thinner than limbs
LINES_PER_SIDE = 130  # a limb is drawn this many times thinner than its person is long
FAINT, FAINT_OPACITY = 0.35, 0.4  # keypoints of less confidence than this are drawn this opaque
FRACTION_BITS = 4  # cv2 draws at 1/16 px


def draw_skeleton(
    image: Image, keypoints: ArrayLike, visible: ArrayLike, spec: DatasetSpec, *, shortest: int = SHORTEST
) -> Image:
    """A copy of the image with one skeleton on it, enlarged until its shorter side has `shortest` px.

    `keypoints` (J, 2) in pixels of `image`, centres at integers; `visible` (J,). Each keypoint has its own colour;
    every line has a dark rim, so it reads on light and on dark.
    """
    canvas, points = _enlarged(image, np.asarray(keypoints, float), shortest)
    _draw(canvas, points, np.asarray(visible, bool), spec, line=_line(canvas))
    return canvas


def draw_people(
    image: Image, people: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]], spec: DatasetSpec, *, min_score: float = 0.0
) -> Image:
    """A copy of the image, in its own size, with a skeleton for each of its people.

    Each is (keypoints (J, 2), scores (J,), box (4,)); lines are as wide as suits the box and the whole image. Keypoints
    with less than `min_score` are not drawn, nor a limb that ends in one; those below `FAINT` shine through.
    """
    canvas, faint = image.copy(), image.copy()
    sure: list[tuple[NDArray[np.float64], NDArray[np.bool_], int, int]] = []
    unsure = False
    for keypoints, scores, box in people:
        points, scores = np.asarray(keypoints, float), np.asarray(scores, float)
        shortest = min(image.shape[:2])
        side = min(float(np.max(np.asarray(box)[2:])), shortest)
        # Wide enough for the person, and to be seen in the whole image, but no wider than the person has room for.
        line = round(min(max(1 + side / LINES_PER_SIDE, shortest / 300), 1 + side / 40))
        rim = 2 if side >= 24 else 0
        shown = scores >= min_score
        sure.append((points, shown & (scores >= FAINT), line, rim))
        if (shown & (scores < FAINT)).any():
            _draw(faint, points, shown, spec, line=line, rim=rim)
            unsure = True
    if unsure:
        canvas = np.asarray(cv2.addWeighted(faint, FAINT_OPACITY, canvas, 1 - FAINT_OPACITY, 0), np.uint8)
    for points, shown, line, rim in sure:
        _draw(canvas, points, shown, spec, line=line, rim=rim)
    return canvas


def draw_comparison(
    image: Image,
    *,
    truth: ArrayLike,
    prediction: ArrayLike,
    visible: ArrayLike,
    spec: DatasetSpec,
    shortest: int = SHORTEST,
) -> Image:
    """A copy of the image with the true skeleton (green, hollow rings) and the predicted one (magenta, dots).

    `truth` and `prediction` (J, 2) in pixels of `image`; only keypoints that are `visible` (J,) are drawn,
    since the others have no truth to compare with.
    """
    canvas, (true, found) = _enlarged(image, np.array([truth, prediction], float), shortest)
    mask, line = np.asarray(visible, bool), _line(canvas)
    _draw(canvas, true, mask, spec, TRUTH, line=line, filled=False)
    _draw(canvas, found, mask, spec, PREDICTION, line=line)
    return canvas


def keypoint_colours(count: int) -> list[Colour]:
    """`count` bright colours, evenly around the colour wheel."""
    if count == 0:
        return []
    hues = (15 + np.arange(count) * 180 / count) % 180
    pixels = np.stack([hues, np.full(count, 190), np.full(count, 255)], axis=1).astype(np.uint8)[None]
    return [(int(b), int(g), int(r)) for b, g, r in cv2.cvtColor(pixels, cv2.COLOR_HSV2BGR)[0]]


def contact_sheet(
    tiles: Sequence[Image],
    columns: int,
    captions: Sequence[str] | None = None,
    *,
    legend: Sequence[tuple[str, Colour]] = (),
    largest: int = SHORTEST,
) -> Image:
    """Images in rows of `columns`, each in an equal cell of at most `largest` px a side, captions below."""
    if not tiles or columns < 1:
        raise ValueError(f"contact_sheet: {len(tiles)} tiles in {columns} columns; expected at least one of each")
    if captions is not None and len(captions) != len(tiles):
        raise ValueError(f"contact_sheet: {len(captions)} captions for {len(tiles)} tiles")
    fitted = [_fitted(tile, largest) for tile in tiles]
    height, width = max(tile.shape[0] for tile in fitted), max(tile.shape[1] for tile in fitted)
    gap, strip, head = 8, 24 if captions is not None else 0, 32 if legend else 0
    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    sheet = np.empty((head + gap + rows * (height + strip + gap), gap + columns * (width + gap), 3), np.uint8)
    sheet[:] = PAPER
    for number, tile in enumerate(fitted):
        top = head + gap + number // columns * (height + strip + gap)
        left = gap + number % columns * (width + gap)
        y, x = top + (height - tile.shape[0]) // 2, left + (width - tile.shape[1]) // 2
        sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
        if captions is not None:
            _write(sheet, captions[number], (left + 2, top + height + 17), width - 4)
    x = gap
    for text, colour in legend:
        cv2.circle(sheet, (x + 8, head // 2 + 4), 7, OUTLINE, -1, cv2.LINE_AA)
        cv2.circle(sheet, (x + 8, head // 2 + 4), 6, colour, -1, cv2.LINE_AA)
        x += 22 + _write(sheet, text, (x + 20, head // 2 + 9), sheet.shape[1]) + 20
    return sheet


def _enlarged(image: Image, points: NDArray[np.float64], shortest: int) -> tuple[Image, NDArray[np.float64]]:
    """A copy at least `shortest` px a side and the points (..., 2) on it."""
    factor = max(1.0, shortest / min(image.shape[:2]))
    if factor == 1.0:
        return image.copy(), points
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    larger = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    # The edges of an image, not its outermost pixel centres, keep their place.
    return larger, (points + 0.5) * [size[0] / image.shape[1], size[1] / image.shape[0]] - 0.5


def _line(canvas: Image) -> int:
    """Width of a limb on the crop of one person."""
    return max(2, round(min(canvas.shape[:2]) / LINES_PER_SIDE))


def _draw(
    canvas: Image,
    points: NDArray[np.float64],
    visible: NDArray[np.bool_],
    spec: DatasetSpec,
    colour: Colour | None = None,
    *,
    line: int,
    rim: int = 2,
    filled: bool = True,
) -> None:
    """Draw a skeleton in place, limbs `line` px wide with rims of `rim` px: those first, to cut no line."""
    colours = [colour] * len(points) if colour is not None else keypoint_colours(len(points))
    visible = visible & np.isfinite(points).all(axis=1) & (np.abs(points) < 1e5).all(axis=1)  # cv2 takes int32
    at = [(int(x), int(y)) for x, y in np.rint(np.where(visible[:, None], points, 0) * 2**FRACTION_BITS)]
    bones = [(a, b) for a, b in spec.skeleton if visible[a] and visible[b]]
    radius = round((1.7 * line) * 2**FRACTION_BITS)
    for dark in (rim, 0):
        for a, b in bones:
            shade = OUTLINE if dark else colours[b]
            cv2.line(canvas, at[a], at[b], shade, line + dark, cv2.LINE_AA, FRACTION_BITS)
    for joint in np.flatnonzero(visible):
        for dark in (rim, 0):
            shade = OUTLINE if dark else colours[joint]
            size, width = (radius + (dark << FRACTION_BITS) // 2, -1) if filled else (2 * radius, line + dark)
            cv2.circle(canvas, at[joint], size, shade, width, cv2.LINE_AA, FRACTION_BITS)


def _fitted(tile: Image, largest: int) -> Image:
    factor = min(1.0, largest / max(tile.shape[:2]))
    if factor == 1.0:
        return tile
    size = (max(1, round(tile.shape[1] * factor)), max(1, round(tile.shape[0] * factor)))
    return np.asarray(cv2.resize(tile, size, interpolation=cv2.INTER_AREA), np.uint8)


def _write(sheet: Image, text: str, at: tuple[int, int], width: int) -> int:
    """Write a line, cut off at `width` px; how wide it is. OpenCV's fonts know ASCII only."""
    text = text.encode("ascii", "replace").decode()
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    while len(text) > 4 and cv2.getTextSize(text, font, size, 1)[0][0] > width:
        text = text[:-4] + "..."
    cv2.putText(sheet, text, at, font, size, INK, 1, cv2.LINE_AA)
    return int(cv2.getTextSize(text, font, size, 1)[0][0])
