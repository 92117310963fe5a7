"""COCO-keypoint JSON (Lin et al., ECCV 2014; cocodataset.org, "Data format", keypoint detection)."""

from functools import partial
from pathlib import Path

import numpy as np

from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import DatasetSpec
from fedgh_app.pose.readers.intake import BadEntry, Entries, RawPose, numbers, read_json

# Of an image entry: COCO's own keys, and ours that are no attributes.
COCO_KEYS = {"id", "file_name", "width", "height", "license", "coco_url", "flickr_url", "date_captured"}
OUR_KEYS = {"split", "source"}


def read(spec: DatasetSpec, path: Path) -> Entries:
    """Annotations of `path` in the file's order.

    Crowds and people whose `num_keypoints` is 0 are no poses by the format's own rule, and are passed over.
    Every key of an image entry beyond COCO's own becomes an attribute; `source` names what must not be split.
    """
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected an object with images and annotations, found a {type(data).__name__}")
    for key in ("images", "annotations"):
        if not isinstance(data.get(key), list):
            raise UserError(f"{path}: {key}: expected a list")
    columns, count = _columns(spec, path, data.get("categories"))
    images: dict[int | str, dict[str, object]] = {}
    for entry in data["images"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), (int, str)):
            raise UserError(f"{path}: images: expected objects with an id, found {str(entry)[:60]}")
        if entry["id"] in images:
            raise UserError(f"{path}: images: id {entry['id']!r} stands twice")
        images[entry["id"]] = entry
    for position, entry in enumerate(data["annotations"]):
        known = entry if isinstance(entry, dict) else {}
        if known.get("iscrowd") != 1 and known.get("num_keypoints") != 0:
            yield f"annotation {known.get('id', position)}", partial(_pose, entry, images, columns, count)


def _columns(spec: DatasetSpec, path: Path, categories: object) -> tuple[list[int], int]:
    """Where the file keeps each of our keypoints, by name, and how many keypoints it has."""
    known = [category for category in categories if isinstance(category, dict)] if isinstance(categories, list) else []
    named = [found for category in known if isinstance(found := category.get("keypoints"), list) and found]
    if not named:
        return list(range(spec.num_keypoints)), spec.num_keypoints
    names = named[0]
    if any(other != names for other in named[1:]):
        raise UserError(f"{path}: categories: several keypoint lists in one file, expected one")
    missing = [name for name in spec.keypoints if name not in names]
    if missing:
        raise UserError(f"{path}: categories: keypoints {', '.join(missing)} of data set {spec.name} are missing")
    return [names.index(name) for name in spec.keypoints], len(names)


def _pose(entry: object, images: dict[int | str, dict[str, object]], columns: list[int], count: int) -> RawPose:
    if not isinstance(entry, dict):
        raise BadEntry("expected an object")
    image_id = entry.get("image_id")
    if not isinstance(image_id, (int, str)) or image_id not in images:
        raise BadEntry(f"image_id {image_id!r} is not among the images")
    image = images[image_id]
    if not isinstance(entry.get("id"), (int, str)):
        raise BadEntry(f"id {entry.get('id')!r}, expected a number or a name")
    triples = numbers(entry.get("keypoints"), (-1,), "keypoints")
    if triples.shape != (3 * count,):
        raise BadEntry(f"keypoints: expected {3 * count} numbers ({count} keypoints), found {triples.size}")
    triples = triples.reshape(count, 3)[columns]
    flags = triples[:, 2]  # 0 not labelled, 1 labelled but occluded, 2 visible
    if not np.isin(flags, (0, 1, 2)).all():
        raise BadEntry(f"keypoints: visibility {flags.tolist()}, expected 0, 1 or 2")
    width, height = image.get("width"), image.get("height")
    source, split = image.get("source"), image.get("split")
    return RawPose(
        id=str(entry["id"]),
        file_name=image.get("file_name"),
        keypoints=triples[:, :2],
        visible=flags > 0,
        box=numbers(entry.get("bbox"), (4,), "bbox"),
        group=None if source is None else str(source),
        split=None if split is None else str(split),
        attributes={key: str(value) for key, value in image.items() if key not in COCO_KEYS | OUR_KEYS},
        image_size=(width, height) if type(width) is int and type(height) is int else None,
        image_id=image_id,
    )
