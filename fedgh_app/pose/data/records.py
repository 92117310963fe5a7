"""What a data set is (`DatasetSpec`) and what one person in one image is (`PoseRecord`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from fedgh_app.errors import UserError
from fedgh_app.tasks import DATASETS, read_spec

Metric = Literal["pck", "pckh"]
Reference = Literal["box", "torso", "head"]
Format = Literal["coco", "mpii", "mpii_mat", "lsp"]
OnBad = Literal["raise", "skip"]  # of a bad record: an error, or left out and counted


@dataclass(frozen=True)
class DatasetSpec:
    """One data set as `datasets/<name>.yaml` describes it; J keypoints.

    `flip_pairs`, `skeleton` and `upper_body` hold keypoint indices here and keypoint names in the file. The first
    of `thresholds` is the headline: a keypoint is right within that fraction of the reference length. `upper_body`
    is what half-body augmentation parts from the rest; a set without halves leaves it out.
    """

    name: str
    title: str
    keypoints: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    skeleton: tuple[tuple[int, int], ...]
    metric: Metric
    reference: Reference
    thresholds: tuple[float, ...]
    format: Format
    test_fraction: float
    licence: str
    source: str
    obtain: str
    upper_body: tuple[int, ...] = ()

    @property
    def predicts(self) -> tuple[str, ...]:
        """What a head that is trained on it predicts: the keypoints."""
        return self.keypoints

    @property
    def num_keypoints(self) -> int:
        """J."""
        return len(self.keypoints)

    @property
    def headline(self) -> str:
        """Name of the headline metric, such as PCK@0.2."""
        return f"{'PCKh' if self.metric == 'pckh' else 'PCK'}@{self.thresholds[0]:g}"

    @property
    def flip_permutation(self) -> np.ndarray:
        """Order of the keypoints in a mirrored image, (J,) int64; its own inverse."""
        order = np.arange(len(self.keypoints))
        for left, right in self.flip_pairs:
            order[left], order[right] = right, left
        return order


@dataclass(frozen=True, eq=False)
class PoseRecord:
    """One labelled person (or arm) in one image, the common form of every reader.

    `keypoints` (J, 2) float32 are x, y in image pixels, 0-based with pixel centres at integers. `visible` (J,) bool
    says which of them count: those that the annotator placed, occluded or not, as in the papers' evaluations (LSP is
    the exception, see `readers.lsp`). `box` (4,) float32 is x, y, width, height in pixels. `reference_length` in pixels
    is the metric's unit. Records of one `group` stay on one side of a split. `split` is the file's own word, if it says
    one. `image_size` is (width, height) where the annotations state it. `image_id` is what the annotation file calls
    the image: COCO's number or name for it, LSP's number of it, MPII's name of it.
    """

    id: str
    image: Path
    keypoints: np.ndarray
    visible: np.ndarray
    box: np.ndarray
    reference_length: float
    group: str
    split: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None
    image_id: int | str = ""


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used: the `file` to look at (image or annotation file) and the reason."""

    file: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


def load_spec(name: str, directory: Path = DATASETS) -> DatasetSpec:
    """Read `<directory>/<name>.yaml`; anything wrong in it is one `UserError`."""
    path, values = read_spec(name, directory)
    expected = {entry.name for entry in fields(DatasetSpec)} - {"name"} | {"task"}
    if set(values) | {"upper_body"} != expected:
        missing, extra = sorted(expected - {*values, "upper_body"}), sorted(map(str, set(values) - expected))
        raise UserError(f"{path}: missing keys {missing}, unknown keys {extra}")
    for key, kind in (("metric", Metric), ("reference", Reference), ("format", Format)):
        if values[key] not in get_args(kind):
            raise UserError(f"{path}: {key}={values[key]!r}, expected one of {', '.join(get_args(kind))}")
    if not isinstance(values["keypoints"], list):
        raise UserError(f"{path}: keypoints={values['keypoints']!r}, expected a list of names")
    keypoints = tuple(str(keypoint) for keypoint in values["keypoints"])
    if not keypoints or len(set(keypoints)) != len(keypoints):
        raise UserError(f"{path}: keypoints={list(keypoints)}, expected distinct names, at least one")
    index = {keypoint: position for position, keypoint in enumerate(keypoints)}

    def pairs(key: str) -> tuple[tuple[int, int], ...]:
        try:
            return tuple((index[first], index[second]) for first, second in values[key] or ())
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: {key}: expected pairs of keypoint names, problem at {error}") from error

    try:
        thresholds = tuple(float(threshold) for threshold in values["thresholds"])
        test_fraction = float(values["test_fraction"])
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: thresholds and test_fraction must be numbers: {error}") from error
    if not thresholds or min(thresholds) <= 0 or not 0 <= test_fraction < 1:
        raise UserError(f"{path}: expected thresholds above 0 and test_fraction in [0, 1)")
    flip_pairs = pairs("flip_pairs")
    flipped = [keypoint for pair in flip_pairs for keypoint in pair]
    if len(set(flipped)) != len(flipped):
        raise UserError(f"{path}: flip_pairs: a keypoint stands in two pairs or is its own partner")
    upper_body = values.get("upper_body", [])
    if not isinstance(upper_body, list) or not set(map(str, upper_body)) <= set(keypoints):
        raise UserError(f"{path}: upper_body={upper_body}, expected a list of keypoint names")
    return DatasetSpec(
        name=name,
        keypoints=keypoints,
        flip_pairs=flip_pairs,
        skeleton=pairs("skeleton"),
        upper_body=tuple(index[str(keypoint)] for keypoint in upper_body),
        thresholds=thresholds,
        test_fraction=test_fraction,
        metric=values["metric"],
        reference=values["reference"],
        format=values["format"],
        **{key: str(values[key]) for key in ("title", "licence", "source", "obtain")},
    )
