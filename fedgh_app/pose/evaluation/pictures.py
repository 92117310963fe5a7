"""Pictures of what a model finds: on test images, the errors of each keypoint, and the people it got most wrong."""

from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from torch import nn

from fedgh_app.pose.data.batches import Batches
from fedgh_app.pose.data.cache import CropCache
from fedgh_app.pose.data.crops import apply_affine, crop_matrix
from fedgh_app.pose.data.records import DatasetSpec
from fedgh_app.pose.evaluation.metrics import pck
from fedgh_app.pose.evaluation.people import Errors
from fedgh_app.pose.models.decoding import Decode
from fedgh_app.pose.prediction.drawing import LEGEND, Image, contact_sheet, draw_comparison
from fedgh_app.pose.training import Permutation, find_keypoints
from fedgh_app.vision.images import read_image, write_image

SHOWN = 12  # test images
TILE = 288  # px, the longer side of a person on the sheet
COLUMNS = 5  # of the sheet
BINS = 32  # of the histograms
AROUND = 1.5  # a tile shows this many times the annotated box
RIGHT, WRONG, LINE = "#0072B2", "#A8A8A8", "#D55E00"
UNIT = {"box": "longest side of the box", "torso": "torso", "head": "0.6 x diagonal of the head box"}


def predictions(
    model: nn.Module, cache: CropCache, path: Path, decode: Decode, flip_permutation: Permutation | None
) -> None:
    """Predicted and true keypoints drawn on test images, spread over the whole test split."""
    test = cache.indices("test")
    if len(test) == 0:
        return
    chosen = test[np.linspace(0, len(test) - 1, min(SHOWN, len(test))).round().astype(int)]
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


def draw_errors(errors: Errors, spec: DatasetSpec, folder: Path, title: str) -> None:
    """Write the histograms and the worst predictions as ``errors.png`` and ``worst.png``."""
    error_histograms(errors, spec, title).savefig(folder / "errors.png")
    write_image(folder / "worst.png", worst_predictions(errors, spec))


def error_histograms(errors: Errors, spec: DatasetSpec, title: str) -> Figure:
    """A histogram of each keypoint's errors in reference lengths, with a line at the headline's threshold.

    The axes are 4, 8 or 16 thresholds long, whichever first holds nine tenths of all errors; the last bar stands for
    what lies beyond.
    """
    headline = spec.thresholds[0]
    most = np.quantile(errors.distance[errors.visible], 0.9) / headline
    thresholds = next((times for times in (4, 8) if times >= most), 16)
    end = headline * thresholds
    edges = headline * np.arange(BINS + 1) * thresholds / BINS  # the threshold is one of them
    columns = _columns(spec.num_keypoints)
    rows = -(-spec.num_keypoints // columns)
    figure = Figure(figsize=(2.5 * columns + 0.6, 2.0 * rows + 1.0), dpi=110, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    right = 100 * pck(errors.distance, errors.visible, headline)
    for axes in grid.flat[spec.num_keypoints :]:
        axes.set_visible(False)
    for place, (axes, name) in enumerate(zip(grid.flat, spec.keypoints, strict=False)):
        own = errors.distance[errors.visible[:, place], place]
        counts, _ = np.histogram(np.minimum(own, edges[-1]), bins=edges)
        colours = [RIGHT if edge < headline else WRONG for edge in edges[:-1]]
        axes.bar(edges[:-1], 100 * counts / max(1, len(own)), width=np.diff(edges), align="edge", color=colours)
        axes.axvline(headline, color=LINE, linewidth=1.4)
        said = f"{right[place]:.1f} %" if len(own) else "not annotated"
        axes.set_title(f"{name.replace('_', ' ')}: {said}", fontsize=9)
        axes.set_xlim(0, end)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7, labelbottom=place + columns >= spec.num_keypoints)
    figure.supxlabel(f"error ({UNIT[spec.reference]} = 1; the last bar is that and more)", fontsize=9)
    figure.supylabel("people (%)", fontsize=9)
    figure.suptitle(f"{title}: errors by keypoint, and {spec.headline}", fontsize=10)
    return figure


def _columns(count: int) -> int:
    """As many as leave the fewest gaps: 5 for 14 keypoints, 4 for 16, 6 for 17."""
    return count if count <= 6 else min((6, 5, 4), key=lambda columns: -count % columns)


def worst_predictions(errors: Errors, spec: DatasetSpec, count: int = 20) -> Image:
    """The people with the largest mean error over visible keypoints, worst first; truth and prediction drawn."""
    means = mean_errors(errors)
    worst = np.argsort(-means, kind="stable")[:count]
    tiles = [_tile(errors, int(place), spec) for place in worst]
    captions = [f"{means[place]:.2f} x {spec.reference}, {errors.records[place].image.stem}" for place in worst]
    return contact_sheet(tiles, COLUMNS, captions, legend=LEGEND, largest=TILE)


def mean_errors(errors: Errors) -> np.ndarray:
    """Mean distance of each person's visible keypoints, (N,) in reference lengths."""
    return np.where(errors.visible, errors.distance, 0).sum(1) / errors.visible.sum(1)


def _tile(errors: Errors, place: int, spec: DatasetSpec) -> Image:
    """The surroundings of a person's box, out of the original image: sharper than what the model saw."""
    record = errors.records[place]
    image = cv2.cvtColor(read_image(record.image), cv2.COLOR_RGB2BGR)
    width, height = record.box[2:]
    scale = TILE / max(width, height)
    size = (max(TILE // 2, round(width * scale)), max(TILE // 2, round(height * scale)))
    matrix = crop_matrix(record.box, size, padding=AROUND)
    tile = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_CUBIC, borderValue=(128, 128, 128))
    truth, found = (apply_affine(points, matrix) for points in (record.keypoints, errors.keypoints[place]))
    picture, seen = np.asarray(tile, np.uint8), record.visible
    return draw_comparison(picture, truth=truth, prediction=found, visible=seen, spec=spec, shortest=TILE // 2)
