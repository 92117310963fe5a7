"""Tensors in files, without pickle (safetensors): the same tensors and words are the same bytes."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedgh_app.errors import UserError, first_line
from fedgh_app.vision.files import replacing


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, atomically."""
    here = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as draft:
        save_file(here, draft, metadata=dict(metadata) if metadata else None)
        _order_metadata(draft)


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and its metadata; UserError where it is none."""
    try:
        with safe_open(file, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}  # noqa: SIM118  # cannot be iterated
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a safetensors file ({first_line(error)})") from None


def _order_metadata(file: Path) -> None:
    """Sort the metadata in a file's header, whose order the library leaves to chance.

    The format: the header's length in 8 bytes, little-endian; the header, JSON padded with blanks; the tensors.
    """
    with file.open("r+b") as content:
        length = int.from_bytes(content.read(8), "little")
        header = json.loads(content.read(length))
        metadata = dict(sorted(header.pop("__metadata__", {}).items()))
        ordered = ({"__metadata__": metadata} if metadata else {}) | header
        text = json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > length:  # JSON as the library writes it is as short as JSON gets
            raise ValueError(f"{file.name}: a header of {length} bytes became one of {len(text)}")
        content.seek(8)
        content.write(text.ljust(length))
