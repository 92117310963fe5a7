"""What a data set holds and what is wrong with it: the work of `fedgh data check`."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedgh_app.errors import UserError
from fedgh_app.pose.data.augmentation import Augmentation
from fedgh_app.pose.data.batches import MEAN, STD, Batches
from fedgh_app.pose.data.cache import cut_records
from fedgh_app.pose.data.crops import apply_affine, crop_matrix, inside
from fedgh_app.pose.data.records import BadRecord, DatasetSpec, PoseRecord
from fedgh_app.pose.data.split import split_records
from fedgh_app.pose.prediction.drawing import Image, contact_sheet, draw_skeleton
from fedgh_app.pose.readers import annotation_file, read_records
from fedgh_app.vision.cache import in_order
from fedgh_app.vision.images import read_image, write_image

TILE = 288  # px, side of a picture on the contact sheet
COLUMNS = 6  # of pictures on it
AROUND = 1.7  # a picture shows this many times the annotated box
MOST_VALUES = 12  # an attribute with more values than this is listed by its commonest
MOST_BAD = 20  # lines of trouble in the printed report

# How training sees a data set: the augmentation, and the size (h, w) of the inputs in pixels.
Seen = tuple[Augmentation, tuple[int, int]]


@dataclass(frozen=True)
class CheckReport:
    """Counts of a data set, its bad records, and the contact sheet's path (None: nothing could be drawn).

    `odd` are things that training survives but an owner wants to know, one line each.
    """

    name: str
    root: Path
    images: int
    annotations: int
    splits: Mapping[str, int]
    attributes: Mapping[str, Mapping[str, int]]
    visible: Mapping[str, int]
    bad: tuple[BadRecord, ...]
    odd: tuple[str, ...]
    sheet: Path | None

    def __rich__(self) -> RenderableType:
        table = Table(title=f"{self.name}: {self.root}", title_justify="left", show_header=False)
        table.add_column(style="bold")
        table.add_column()
        table.add_column(justify="right")
        table.add_row("images", "", str(self.images))
        table.add_row("annotations", "", str(self.annotations))
        most = max(MOST_VALUES, len(self.visible))
        for title, counts in (("split", self.splits), *self.attributes.items(), ("visible", self.visible)):
            table.add_section()
            for row, (value, number) in enumerate(list(counts.items())[:most]):
                table.add_row(title if row == 0 else "", value, str(number))
            if len(counts) > most:
                table.add_row("", f"... {len(counts)} values in all", "")
        lines: list[RenderableType] = [table]
        if self.bad:
            lines.append(Text(f"{len(self.bad)} bad records", style="bold red"))
            lines += [Text(f"  {bad}") for bad in self.bad[:MOST_BAD]]
            if len(self.bad) > MOST_BAD:
                lines.append(Text(f"  ... and {len(self.bad) - MOST_BAD} more"))
        else:
            lines.append(Text("no bad records", style="green"))
        lines += [Text(f"note: {line}", style="yellow") for line in self.odd]
        if self.sheet is not None:
            lines.append(Text(f"contact sheet: {self.sheet}"))
        return Group(*lines)


def check(
    spec: DatasetSpec,
    root: Path,
    *,
    out: Path,
    count: int = 24,
    seen: Seen | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read every annotation and decode every image under `root`; draw `count` of them onto the PNG `out`.

    They are drawn as annotated, or as `seen` in training, where a record that cannot be trained on is a `UserError`.
    Other bad records are listed, not raised; an annotation file that is no annotation file at all is a `UserError`.
    `progress` is called with (images decoded, images in all).
    """
    records, bad = read_records(spec, root, on_bad="skip")
    files = sorted({record.image for record in records})
    sizes, broken = _decode(files, progress)
    bad += broken
    records = [record for record in records if record.image in sizes]
    try:
        splits: Sequence[str] = split_records(records, spec)
    except UserError as error:
        bad.append(BadRecord(annotation_file(spec, root)[0], str(error)))
        splits = [split for record in records for split in split_records([record], spec)]  # each by itself
    visible = np.array([record.visible for record in records], bool).reshape(len(records), spec.num_keypoints)
    return CheckReport(
        name=spec.name,
        root=root,
        images=len(sizes),
        annotations=len(records),
        splits={split: splits.count(split) for split in ("train", "test")},
        attributes=_attributes(records),
        visible=dict(zip(spec.keypoints, visible.sum(axis=0).tolist(), strict=True)),
        bad=tuple(bad),
        odd=tuple(_odd(records, sizes, spec)),
        sheet=_sheet(_spread(records, count), spec, out, seen),
    )


def _decode(
    files: Sequence[Path], progress: Callable[[int, int], None] | None
) -> tuple[dict[Path, tuple[int, int]], list[BadRecord]]:
    """Size (width, height) of each image that can be decoded, and the files that cannot."""
    sizes: dict[Path, tuple[int, int]] = {}
    broken: list[BadRecord] = []
    for done, (path, result) in enumerate(in_order(files, lambda path: read_image(path).shape), start=1):
        if isinstance(result, UserError):
            broken.append(BadRecord(path, str(result).removeprefix(f"{path}: ")))
        else:
            sizes[path] = (result[1], result[0])
        if progress is not None:
            progress(done, len(files))
    return sizes, broken


def _attributes(records: Sequence[PoseRecord]) -> dict[str, dict[str, int]]:
    """How often each value of each attribute occurs: few values by name, many by frequency."""
    counters: dict[str, Counter[str]] = {}
    for record in records:
        for name, value in record.attributes.items():
            counters.setdefault(name, Counter())[value] += 1
    return {
        name: dict(sorted(counter.items()) if len(counter) <= MOST_VALUES else counter.most_common())
        for name, counter in sorted(counters.items())
    }


def _odd(records: Sequence[PoseRecord], sizes: Mapping[Path, tuple[int, int]], spec: DatasetSpec) -> list[str]:
    lines = []
    outside = [r for r in records if not inside(r.keypoints[r.visible], sizes[r.image][::-1]).all()]
    if outside:
        lines.append(f"{len(outside)} records with a visible joint outside of the image, first {outside[0].image}")
    resized = [r for r in records if r.image_size is not None and tuple(r.image_size) != sizes[r.image]]
    if resized:
        lines.append(
            f"{len(resized)} records whose image has another size than stated, first {resized[0].image}:"
            f" {sizes[resized[0].image]}, stated {resized[0].image_size}"
        )
    never = [name for j, name in enumerate(spec.keypoints) if records and not any(r.visible[j] for r in records)]
    if never:
        lines.append(f"never visible: {', '.join(never)}")
    return lines


def _spread(records: Sequence[PoseRecord], count: int) -> list[PoseRecord]:
    """`count` records, in equal shares of each combination of attribute values, evenly spaced in each."""
    few = {name for name, values in _attributes(records).items() if len(values) <= MOST_VALUES}
    groups: dict[tuple[str, ...], list[PoseRecord]] = {}
    for record in records:
        key = tuple(record.attributes.get(name, "") for name in sorted(few - {"split"}))
        groups.setdefault(key, []).append(record)
    ordered = [groups[key] for key in sorted(groups)]
    turns = sorted((turn, place) for place, group in enumerate(ordered) for turn in range(len(group)))
    shares = Counter(place for _, place in turns[:count])
    return [
        group[(2 * k + 1) * len(group) // (2 * shares[place])]
        for place, group in enumerate(ordered)
        for k in range(shares[place])
    ]


def _sheet(records: Sequence[PoseRecord], spec: DatasetSpec, out: Path, seen: Seen | None) -> Path | None:
    """Draw the records and write the sheet; None if there are none."""
    if not records:
        return None
    tiles = [_tile(r, spec) for r in records] if seen is None else _inputs(records, spec, seen)
    said = ([f"{name}={value}" for name, value in sorted(r.attributes.items())] for r in records)
    captions = [" ".join([r.image.stem, *words]) for r, words in zip(records, said, strict=True)]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_image(out, contact_sheet(tiles, COLUMNS, captions, largest=TILE))
    return out


def _tile(record: PoseRecord, spec: DatasetSpec) -> Image:
    """The surroundings of the record's box, with its skeleton."""
    image = cv2.cvtColor(read_image(record.image), cv2.COLOR_RGB2BGR)
    matrix = crop_matrix(_surroundings(record.box, image.shape[1], image.shape[0]), (TILE, TILE), padding=1.0)
    tile = cv2.warpAffine(image, matrix, (TILE, TILE), flags=cv2.INTER_CUBIC, borderValue=(128, 128, 128))
    points = apply_affine(np.asarray(record.keypoints, float), matrix)
    return draw_skeleton(np.asarray(tile, np.uint8), points, record.visible, spec, shortest=TILE)


def _inputs(records: Sequence[PoseRecord], spec: DatasetSpec, seen: Seen) -> list[Image]:
    """Each record as an epoch shows it to the network, with its skeleton."""
    (augmentation, input_size), count = seen, len(records)
    cache = cut_records(records, spec, input_size)
    (batch,) = Batches(cache, range(count), batch_size=count, augmentation=augmentation, seed=0, shuffle=False)
    pixels = ((batch.images.permute(0, 2, 3, 1).numpy() * STD + MEAN) * 255).round().clip(0, 255).astype(np.uint8)
    samples = zip(pixels[..., ::-1], batch.keypoints.numpy(), batch.visible.numpy(), strict=True)
    return [draw_skeleton(image, points, visible, spec, shortest=TILE) for image, points, visible in samples]


def _surroundings(box: NDArray[np.float32], width: int, height: int) -> list[float]:
    """A square around a box, moved into the image where it fits there: the less border, the more to see."""
    side = min(AROUND * float(max(box[2:])), float(max(width, height)))
    window = []
    for low, extent, limit in ((box[0], box[2], width), (box[1], box[3], height)):
        middle, room = float(low) + float(extent) / 2, max(side, float(limit))
        window.append(min(max(middle, side / 2 - (room - limit)), room - side / 2) - side / 2 - 0.5)
    return [*window, side, side]
