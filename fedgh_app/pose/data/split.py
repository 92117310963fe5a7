"""Which records are for testing: a property of the data set, never of a run."""

import hashlib
from collections.abc import Sequence
from typing import Literal

from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import DatasetSpec, PoseRecord

Split = Literal["train", "test"]
Side = Literal["all", "train", "test"]  # what is scored of a data set


def split_records(records: Sequence[PoseRecord], spec: DatasetSpec) -> list[Split]:
    """The split of each record; see `split_groups`."""
    return split_groups([(str(record.image), record.group, record.split) for record in records], spec)


def on_side(records: Sequence[PoseRecord], spec: DatasetSpec, side: Side) -> list[PoseRecord]:
    """The records on the side ``train`` or ``test`` of the split; ``all`` of them."""
    splits = split_records(records, spec)  # also for all: a contradiction in the file is an error
    return [record for record, split in zip(records, splits, strict=True) if side in ("all", split)]


def split_groups(members: Sequence[tuple[str, str, str | None]], spec: DatasetSpec) -> list[Split]:
    """The split of each of several people or images, one and the same within a group.

    Each is what errors call it, its group, and the file's own word for it: ``train``, ``test`` or None. Where the file
    names the split of some of a group, all of them follow; where it names two, that is an error in the file, since
    two crops of one image would stand on both sides. Where it names none, a hash of the group's name decides.
    """
    words: dict[str, Split] = {}
    for where, group, word in members:
        if word is not None and words.setdefault(group, "test" if word == "test" else "train") != word:
            raise UserError(f"{where}: group {group!r} is in train and in test, expected one of them")
    return [words.get(group) or _by_hash(group, spec) for _, group, _ in members]


def _by_hash(group: str, spec: DatasetSpec) -> Split:
    """By a fixed hash of the group's name against `spec.test_fraction`."""
    digest = hashlib.blake2b(f"{spec.name}/{group}".encode("utf-8", "surrogatepass"), digest_size=8)
    return "test" if int.from_bytes(digest.digest(), "big") / 2**64 < spec.test_fraction else "train"
