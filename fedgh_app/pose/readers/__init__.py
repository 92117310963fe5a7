"""Annotation files of several formats, all read into `PoseRecord`.

A module per format turns numbers into 0-based pixels; `intake` then checks what every record must satisfy. So each
format says only what is particular to it.
"""

from functools import partial
from pathlib import Path

from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import BadRecord, DatasetSpec, OnBad, PoseRecord
from fedgh_app.pose.readers import coco, lsp, mpii
from fedgh_app.pose.readers.intake import BadEntry, Reader, record

READERS: dict[str, tuple[str, Reader]] = {
    "coco": ("annotations.json", coco.read),
    "mpii": ("annotations.json", mpii.read_simple),
    "mpii_mat": (mpii.OFFICIAL_FILE, mpii.read_official),
    "lsp": ("joints.mat", lsp.read),
}


def annotation_file(spec: DatasetSpec, root: Path) -> tuple[Path, Reader]:
    """The annotation file under `root` and how to read it.

    MPII comes in two forms with one meaning: a folder that has only the official file is read as such.
    """
    if not root.is_dir():
        raise UserError(f"dataset.root={root}: no such folder; to get the data: {spec.obtain}")
    name, reader = READERS[spec.format]
    if spec.format == "mpii" and not (root / name).is_file() and (root / mpii.OFFICIAL_FILE).is_file():
        name, reader = READERS["mpii_mat"]
    return root / name, reader


def read_records(spec: DatasetSpec, root: Path, *, on_bad: OnBad = "raise") -> tuple[list[PoseRecord], list[BadRecord]]:
    """Every pose under `root`, in the file's order, and what was dropped.

    A bad record raises a `UserError` that names the file, or with `on_bad="skip"` is dropped and counted. An
    annotation file that cannot be understood as a whole always raises. Images are only looked for here, not
    decoded: that is the crop cache's part, or `fedgh data check`'s.
    """
    path, reader = annotation_file(spec, root)
    return _records(spec, path, reader, root, on_bad)


def read_truth(spec: DatasetSpec, path: Path, *, on_bad: OnBad = "raise") -> tuple[list[PoseRecord], list[BadRecord]]:
    """Every pose of one annotation file, whatever its name, as the data set's published evaluation counts it.

    As `read_records`, but without a look for the images, and joints that LSP calls hidden count.
    """
    _, reader = READERS["mpii_mat" if spec.format == "mpii" and path.suffix.lower() == ".mat" else spec.format]
    if reader is lsp.read:
        reader = partial(lsp.read, hidden_count=True)
    return _records(spec, path, reader, None, on_bad)


def _records(
    spec: DatasetSpec, path: Path, reader: Reader, root: Path | None, on_bad: OnBad
) -> tuple[list[PoseRecord], list[BadRecord]]:
    if on_bad not in ("raise", "skip"):
        raise UserError(f"on_bad={on_bad!r}, expected raise or skip")
    records: list[PoseRecord] = []
    bad: list[BadRecord] = []
    seen: set[str] = set()
    for where, read in reader(spec, path):
        try:
            pose = record(read(), spec, root)
            if pose.id in seen:
                raise BadEntry(f"id {pose.id} stands twice")
        except BadEntry as error:
            missing = error.missing is not None
            entry = f"{error} ({where} of {path.name})" if missing else f"{where}: {error}"
            bad.append(BadRecord(error.missing or path, entry))
            if on_bad == "raise":
                raise UserError(str(bad[-1])) from error
        else:
            seen.add(pose.id)
            records.append(pose)
    return records, bad
