"""Leeds Sports Pose and its extended set, `joints.mat` (Johnson and Everingham, BMVC 2010 and CVPR 2011)."""

from functools import partial
from pathlib import Path

import numpy as np

from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import DatasetSpec
from fedgh_app.pose.readers.intake import BadEntry, Entries, RawPose, read_arrays

# Hands, feet and hair reach beyond the joints, by about a tenth of the person's longest side.
BOX_MARGIN = 0.1
# LSP itself, 2,000 people: the first half is for training, the second for testing.
LSP_PEOPLE = 2000


def read(spec: DatasetSpec, path: Path, *, hidden_count: bool = False) -> Entries:
    """People of `joints.mat`, one an image `im%04d.jpg` (LSP) or `im%05d.jpg` (LSPET).

    The two sets store the same numbers in two layouts, and the third number means opposite things: LSPET, (J, 3, N),
    says 1 for a joint that was placed; LSP, (3, J, N), says 1 for a joint that is hidden, whose place is the
    annotator's guess. So the layout tells how to read it, and hidden joints of LSP do not count here, unless
    ``hidden_count``, as in LSP's published evaluation. There is no box in the file: it is the joints' extent, enlarged.
    """
    joints = read_arrays(path, ["joints"]).get("joints")
    count = spec.num_keypoints
    shape = getattr(joints, "shape", ())
    if joints is None or len(shape) not in (2, 3) or joints.dtype.kind not in "iuf":
        raise UserError(f"{path}: joints: expected numbers of shape ({count}, 3, N) or (3, {count}, N)")
    joints = joints.reshape(*shape, 1) if len(shape) == 2 else joints  # MATLAB drops a last dimension of 1
    if joints.shape[:2] == (count, 3):
        points = joints.transpose(2, 0, 1).astype(np.float64)
        visible = points[:, :, 2] == 1
    elif joints.shape[:2] == (3, count):
        points = joints.transpose(2, 1, 0).astype(np.float64)
        visible = np.full(points.shape[:2], True) if hidden_count else points[:, :, 2] == 0
    else:
        raise UserError(f"{path}: joints: expected shape ({count}, 3, N) or (3, {count}, N), found {shape}")
    digits = 5 if (path.parent / "images" / "im00001.jpg").is_file() or joints.shape[0] == count else 4
    halves = joints.shape == (3, count, LSP_PEOPLE)
    for number, person in enumerate(zip(points, visible, strict=True), start=1):
        split = ("test" if number > LSP_PEOPLE // 2 else "train") if halves else None
        yield f"person {number}", partial(_pose, number, f"im{number:0{digits}d}.jpg", *person, split)


def _pose(number: int, name: str, points: np.ndarray, visible: np.ndarray, split: str | None) -> RawPose:
    if not np.isin(points[:, 2], (0, 1)).all():
        raise BadEntry(f"joints: third number {points[:, 2].tolist()}, expected 0 or 1")
    return RawPose(
        id=Path(name).stem,
        file_name=name,
        keypoints=points[:, :2],
        visible=visible,
        box=_box(points[visible, :2]),
        split=split,
        image_id=number,
    )


def _box(points: np.ndarray) -> np.ndarray:
    """Extent of the joints, enlarged on every side by a share of the longer one; a lone joint has no area."""
    if len(points) == 0:
        raise BadEntry("no keypoint is visible")
    low, high = points.min(axis=0), points.max(axis=0)
    margin = BOX_MARGIN * (high - low).max()
    return np.concatenate([low - margin, high - low + 2 * margin])
