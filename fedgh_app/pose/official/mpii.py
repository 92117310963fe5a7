"""PCKh of MPII Human Pose, from the files that pose codes write for its validation set, or from COCO results.

In ``.mat``, ``.h5`` and ``.npz`` files all coordinates are MPII's own: pixels of the original image, counted from 1 as
in MATLAB.
"""

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import DatasetSpec, OnBad
from fedgh_app.pose.evaluation.metrics import MPII_JOINTS, pckh
from fedgh_app.pose.official.people import Compared, compare
from fedgh_app.pose.official.scores import Score, Side
from fedgh_app.pose.readers.intake import HEAD_BOX_FACTOR
from fedgh_app.vision.matlab import LARGEST_ARRAY_BYTES, read_matlab

Array = np.ndarray

TRUTH_KEYS = ("pos_gt_src", "jnt_missing", "headboxes_src")
PREDICTION_KEYS = ("preds", "pos_pred_src")
HDF5_SUFFIXES = (".h5", ".hdf5")
RULE = "reference: 0.6 x the diagonal of the head box; mean without pelvis and thorax, joints weighted by their count"


def score(spec: DatasetSpec, truth: Path, predictions: Path, *, side: Side = "all", on_bad: OnBad = "raise") -> Score:
    """PCKh by the official groups of joints and their mean (see `metrics.pckh`).

    Predictions are either arrays (`read_mpii_predictions`), for a ``truth`` with ``pos_gt_src`` and the same people in
    the same order; or COCO results (``.json``), for a ``truth`` that is the official annotation file or the JSON of
    Simple Baselines. That JSON has no head boxes: there the reference is what `readers.intake.reference_length` says.
    """
    if predictions.suffix.lower() == ".json":
        compared = compare(spec, truth, predictions, side=side, on_bad=on_bad)
    elif side != "all":
        raise UserError(f"--split {side}: people of {truth.name} come without one, expected all")
    else:
        keypoints, visible, lengths = read_mpii_truth(truth)
        found = read_mpii_predictions(predictions, people=len(keypoints))
        compared = Compared(np.linalg.norm(found - keypoints, axis=-1) / lengths[:, None], visible, left_out=0)
    rows = {
        f"PCKh@{limit:g}": {name: 100 * part for name, part in pckh(compared.distance, compared.counted, limit).items()}
        for limit in spec.thresholds
    }
    return Score("MPII, PCKh", rows, len(compared.distance), RULE, compared.left_out)


def read_mpii_truth(path: Path) -> tuple[Array, Array, Array]:
    """Keypoints (N, 16, 2), visible (N, 16) bool and 0.6 x head-box diagonal (N,) of a ground-truth ``.mat``.

    The file holds ``pos_gt_src`` (16, 2, N), ``jnt_missing`` (16, N) and ``headboxes_src`` (2, 2, N), whose
    first axis are the two corners.
    """
    arrays = _read(path, TRUTH_KEYS)
    for key in TRUTH_KEYS:
        if key not in arrays:
            raise UserError(f"{path}: found no {key!r}, expected {', '.join(TRUTH_KEYS)}")
    keypoints, missing, boxes = (_numeric(path, key, arrays) for key in TRUTH_KEYS)
    if keypoints.ndim != 3 or keypoints.shape[:2] != (MPII_JOINTS, 2) or keypoints.shape[2] == 0:
        raise _wrong_shape(path, "pos_gt_src", keypoints, "(16, 2, N)")
    people = keypoints.shape[2]
    if missing.shape != (MPII_JOINTS, people):
        raise _wrong_shape(path, "jnt_missing", missing, f"(16, {people})")
    if boxes.shape != (2, 2, people):
        raise _wrong_shape(path, "headboxes_src", boxes, f"(2, 2, {people})")
    lengths = HEAD_BOX_FACTOR * np.linalg.norm(boxes[1] - boxes[0], axis=0)
    usable = np.isfinite(lengths) & (lengths > 0)
    if not usable.all():
        person = int(usable.argmin())
        length = lengths[person] / HEAD_BOX_FACTOR
        raise UserError(f"{path}: found a head box of diagonal {length:g} for person {person}, expected one above 0")
    visible = missing.T == 0
    keypoints = keypoints.transpose(2, 0, 1)
    if not np.isfinite(keypoints[visible]).all():
        raise UserError(f"{path}: found nan or inf in 'pos_gt_src', expected numbers where a joint is not missing")
    return keypoints, visible, lengths


def read_mpii_predictions(path: Path, people: int | None = None) -> Array:
    """Predicted keypoints (N, 16, 2) of a ``.mat``, ``.h5`` or ``.npz`` file.

    It holds ``preds`` (N, 16, 2) or (2, 16, N), or ``pos_pred_src`` (16, 2, N); ``preds`` goes first where it
    holds both. For N = 2 the two shapes of ``preds`` are one, which is read as (N, 16, 2). A joint that was not found
    has to lie somewhere all the same: nan is refused.
    """
    arrays = _read(path, PREDICTION_KEYS)
    key = next((key for key in PREDICTION_KEYS if key in arrays), None)
    if key is None:
        raise UserError(f"{path}: found no 'preds' and no 'pos_pred_src', expected one of them")
    values = _numeric(path, key, arrays)
    shape = values.shape if values.ndim == 3 else (0, 0, 0)
    if key == "pos_pred_src" and shape[:2] == (MPII_JOINTS, 2):
        keypoints = values.transpose(2, 0, 1)
    elif key == "preds" and shape[1:] == (MPII_JOINTS, 2):
        keypoints = values
    elif key == "preds" and shape[:2] == (2, MPII_JOINTS):
        keypoints = values.transpose(2, 1, 0)
    else:
        raise _wrong_shape(path, key, values, "(N, 16, 2) or (2, 16, N)" if key == "preds" else "(16, 2, N)")
    if people is not None and len(keypoints) != people:
        raise UserError(
            f"{path}: found predictions for {len(keypoints)} people in {key!r}, expected {people},"
            " one for each person of the ground truth in its order"
        )
    if not np.isfinite(keypoints).all():
        person, joint, _ = np.argwhere(~np.isfinite(keypoints))[0]
        raise UserError(f"{path}: found nan or inf in {key!r} (person {person}, joint {joint}), expected numbers")
    return keypoints


def _read(path: Path, keys: tuple[str, ...]) -> dict[str, Array]:
    """Those of ``keys`` that the file holds, with MATLAB's or the file's own order of axes."""
    suffix = path.suffix.lower()
    if suffix not in (".mat", ".npz", *HDF5_SUFFIXES):
        raise UserError(f"{path}: found a file of type {suffix or 'unknown'!r}, expected .mat, .h5 or .npz")
    if not path.is_file():
        raise UserError(f"{path}: found no such file, expected a .mat, .h5 or .npz file")
    try:
        if suffix == ".npz":
            # allow_pickle stays off: it would run code out of somebody's file.
            with np.load(path, allow_pickle=False) as archive:
                if sum(member.file_size for member in archive.zip.infolist()) > LARGEST_ARRAY_BYTES:
                    raise ValueError(f"more than {LARGEST_ARRAY_BYTES} bytes when unpacked")
                return {key: archive[key] for key in keys if key in archive}
        if suffix in HDF5_SUFFIXES or h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                arrays = {key: _dataset(file, key) for key in keys if key in file}
            # MATLAB 7.3 writes its axes in the opposite order.
            return {key: value.T for key, value in arrays.items()} if suffix == ".mat" else arrays
        return read_matlab(path.read_bytes(), keys)
    except Exception as error:  # each parser has its own kinds, down to zlib's and zipfile's
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: found a file that cannot be read ({reason}), expected a {suffix} file") from error


def _dataset(file: h5py.File, key: str) -> Array:
    """One data set whose numbers lie in the file itself; ValueError for one that points to another file."""
    found = file[key]
    if not isinstance(file.get(key, getlink=True), h5py.HardLink) or not isinstance(found, h5py.Dataset):
        raise ValueError(f"{key!r} is no data set of this file")
    if found.external or found.is_virtual:
        raise ValueError(f"{key!r} lies in another file")
    if found.nbytes > LARGEST_ARRAY_BYTES:  # chunks that nobody wrote take no room in a file
        raise ValueError(f"{key!r} has {found.nbytes} bytes, expected at most {LARGEST_ARRAY_BYTES}")
    return np.asarray(found)


def _numeric(path: Path, key: str, arrays: Mapping[str, object]) -> Array:
    """``arrays[key]`` as float64; text, cells, structures and complex numbers are refused."""
    values = np.asarray(arrays[key])
    if values.dtype.kind not in "biuf":
        raise UserError(f"{path}: found {key!r} of type {values.dtype}, expected real numbers")
    return values.astype(np.float64)


def _wrong_shape(path: Path, key: str, values: Array, expected: str) -> UserError:
    return UserError(f"{path}: found {key!r} of shape {values.shape}, expected {expected}")
