"""The crop cache of a pose data set (`fedgh_app.vision.cache`): each person's box, cut out once, and its keypoints.

A margin lies around each box, in which a later rotation or zoom finds real pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from fedgh_app.errors import UserError
from fedgh_app.pose.data import crops as cropping
from fedgh_app.pose.data.records import BadRecord, DatasetSpec, OnBad, PoseRecord
from fedgh_app.pose.data.split import Split, split_records
from fedgh_app.pose.readers import annotation_file, read_records
from fedgh_app.vision import cache
from fedgh_app.vision.images import read_image

# Raise it whenever the code would make other crops from the same files.
VERSION = 2
# A crop's size as a multiple of the network's input: what rotation and zoom may show beyond it.
MARGIN = 1.5


@dataclass(frozen=True, eq=False)
class CropCache:
    """N crops of H' x W' pixels with everything that training needs to know of them.

    `crops` (N, H', W', 3) uint8 RGB, read only; `keypoints` (N, J, 2) float32 and `reference_length` (N,)
    float32 in pixels of those crops; `visible` (N, J) bool; `to_image` (N, 2, 3) float64 maps them back to
    the image; `split`, `group`, `ids`, `images` (N,) str, `attributes` each (N,) str, empty where a record
    lacks it. The middle `input_size` = (h, w) pixels of a crop are the network's unaugmented input.
    """

    crops: np.ndarray
    keypoints: np.ndarray
    visible: np.ndarray
    reference_length: np.ndarray
    to_image: np.ndarray
    split: np.ndarray
    group: np.ndarray
    ids: np.ndarray
    images: np.ndarray
    attributes: dict[str, np.ndarray]
    bad: list[BadRecord]
    spec: DatasetSpec
    input_size: tuple[int, int]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.crops)

    def indices(self, split: Split) -> np.ndarray:
        """Positions of the records of one side of the split, ascending (n,) int64."""
        return np.flatnonzero(self.split == split)


def open_cache(
    spec: DatasetSpec,
    root: Path,
    *,
    input_size: tuple[int, int],
    on_bad: OnBad = "raise",
    directory: Path,
) -> CropCache:
    """The crop cache of the data under `root`, built below `directory` if it is not there.

    `input_size` is (h, w). The cache's name is a hash of all it depends on, so changed data or settings make another
    one. Processes that ask at once wait for one of them to build it.
    """
    if len(input_size) != 2 or min(input_size) < 1:
        raise UserError(f"input_size={tuple(input_size)}, expected (height, width) in pixels, at least 1")
    root, directory = Path(root).absolute(), Path(directory).absolute()
    name = fingerprint(spec, root, input_size)
    path = cache.opened(directory, name, lambda part: _build(part, spec, root, input_size, on_bad))
    found = _load(path, (path / cache.META).stat().st_ino, spec)
    if found.bad and on_bad == "raise":
        raise UserError(str(found.bad[0]))
    return found


def crop_size(input_size: tuple[int, int]) -> tuple[int, int]:
    """(H', W') near `MARGIN` times `input_size`, as much on both sides, so that the plain input is a slice of it."""
    height, width = (side + 2 * round((MARGIN - 1) * side / 2) for side in input_size)
    return height, width


def fingerprint(spec: DatasetSpec, root: Path, input_size: tuple[int, int]) -> str:
    """Hash of all that crops depend on."""
    annotations, _ = annotation_file(spec, root)
    settings = [VERSION, asdict(spec), str(root), list(input_size), MARGIN]
    return cache.fingerprint(settings, annotations, root / "images")


def cut(record: PoseRecord, input_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Decode a record's image and crop it: (H', W', 3) uint8 and the map (2, 3) from image to crop."""
    image = read_image(record.image)
    check_image(record, image)
    return _cut_box(image, record.box, input_size)


def check_image(record: PoseRecord, image: np.ndarray) -> None:
    """Raise a `UserError` where the image does not fit the annotation."""
    height, width = image.shape[:2]
    if record.image_size is not None and record.image_size != (width, height):
        stated = "x".join(map(str, record.image_size))
        raise UserError(f"{record.image}: image is {width}x{height}, its annotation says {stated}")
    if is_outside(record.box, width, height):
        box = [round(float(value), 1) for value in record.box]
        raise UserError(f"{record.image}: box {box} of record {record.id} lies outside the {width}x{height} image")


def is_outside(box: np.ndarray, width: int, height: int) -> bool:
    """Whether a box (x, y, width, height) has nothing in common with an image."""
    x, y, box_width, box_height = box
    return bool(x >= width or y >= height or x + box_width <= 0 or y + box_height <= 0)


def _cut_box(image: np.ndarray, box: np.ndarray, input_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Crop of an image (H, W, 3) around a box: (H', W', 3) uint8 and the map (2, 3) from image to crop."""
    h, w = input_size
    matrix = cropping.crop_matrix(box, (w, h))
    crop_height, crop_width = crop_size(input_size)
    matrix[:, 2] += ((crop_width - w) / 2, (crop_height - h) / 2)
    return cropping.crop_image(image, matrix, (crop_width, crop_height)), matrix


def network_input(image: np.ndarray, box: np.ndarray, input_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What a network sees of a box when it is tested: (h, w, 3) uint8 and the map (2, 3) from image to input.

    Cut with the margin of training and then sliced, though the margin is thrown away: a crop without it would be
    averaged over other blocks of pixels, and so differ in its last bits.
    """
    h, w = input_size
    crop, matrix = _cut_box(image, box, input_size)
    top, left = (crop.shape[0] - h) // 2, (crop.shape[1] - w) // 2
    matrix[:, 2] -= (left, top)
    return crop[top : top + h, left : left + w], matrix


def cut_records(records: Sequence[PoseRecord], spec: DatasetSpec, input_size: tuple[int, int]) -> CropCache:
    """Crops of a few records, at least one, in memory and on no side of a split; UserError for a bad record."""
    cuts = [cut(record, input_size) for record in records]
    return CropCache(
        crops=np.stack([crop for crop, _ in cuts]),
        **_arrays(records, np.stack([matrix for _, matrix in cuts]), [""] * len(records)),
        attributes={},
        bad=[],
        spec=spec,
        input_size=input_size,
        fingerprint="",
    )


def _build(part: Path, spec: DatasetSpec, root: Path, input_size: tuple[int, int], on_bad: OnBad) -> None:
    """Fill the folder ``part`` with the cache."""
    records, bad = read_records(spec, root, on_bad=on_bad)
    split_records(records, spec)  # before the slow part: a contradiction in the file is found at once
    kept: list[PoseRecord] = []
    matrices: list[np.ndarray] = []

    def crops() -> Iterator[np.ndarray]:
        for record, result in cache.in_order(records, lambda record: cut(record, input_size)):
            if not isinstance(result, UserError):
                kept.append(record)
                matrices.append(result[1])
                yield result[0]
            elif on_bad == "raise":
                raise result
            else:
                bad.append(BadRecord(record.image, str(result).removeprefix(f"{record.image}: ")))

    cache.write_crops(part, crops())
    if not kept:
        raise UserError(f"{root}: no usable pose of data set {spec.name} ({len(bad)} bad records)")
    names = {key for record in kept for key in record.attributes}
    shape = [len(kept), *crop_size(input_size), 3]
    cache.write_columns(
        part,
        _arrays(kept, np.stack(matrices), split_records(kept, spec)),
        {name: [record.attributes.get(name, "") for record in kept] for name in names},
        {"shape": shape, "input_size": input_size, "bad": [(str(entry.file), entry.reason) for entry in bad]},
    )


def _arrays(records: Sequence[PoseRecord], matrices: np.ndarray, split: Sequence[str]) -> dict[str, np.ndarray]:
    """What stands beside the crops, by name, of records whose crops were cut by `matrices` (N, 2, 3)."""
    keypoints = np.stack([record.keypoints for record in records])
    lengths = np.array([record.reference_length for record in records])
    return {
        "keypoints": cropping.apply_affine(keypoints, matrices).astype(np.float32),
        "visible": np.stack([record.visible for record in records]),
        "reference_length": (lengths * cropping.magnification(matrices)).astype(np.float32),
        "to_image": cropping.invert_affine(matrices),
        "split": np.array(split),
        "group": np.array([record.group for record in records]),
        "ids": np.array([record.id for record in records]),
        "images": np.array([str(record.image) for record in records]),
    }


@lru_cache(maxsize=8)
def _load(path: Path, inode: int, spec: DatasetSpec) -> CropCache:
    """Map a whole cache; kept per process until another one lies at `path` (`inode` of its meta file)."""
    crops, arrays, attributes, meta = cache.load(path)
    return CropCache(
        crops=crops,
        **arrays,
        attributes=attributes,
        bad=[BadRecord(Path(file), reason) for file, reason in meta["bad"]],
        spec=spec,
        input_size=(meta["input_size"][0], meta["input_size"][1]),
        fingerprint=path.name,
    )
