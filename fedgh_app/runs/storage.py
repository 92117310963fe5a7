"""JSON, models and the state of a server in files: written whole or not at all, and never unpickled.

A model is one safetensors file whose metadata tell how to rebuild it. Equal models are equal files.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError

from fedgh_app.errors import UserError, first_line
from fedgh_app.resources import Values
from fedgh_app.runs.directory import CHECKPOINTS, CONFIG, MODEL
from fedgh_app.vision.files import plain, replacing, synchronise, write_json
from fedgh_app.vision.tensors import read_tensors, write_tensors


def save_config(directory: Path, values: Values) -> None:
    """Write the config of a run as YAML, atomically."""
    with replacing(directory / CONFIG) as draft:
        OmegaConf.save(OmegaConf.create(dict(values)), draft)


def flat(config: object, above: str = "") -> dict[str, Any]:
    """The values of a config, or of a node of it, by their dotted keys."""
    if not isinstance(config, Mapping):
        return {above.rstrip("."): config}
    return {key: value for name, node in config.items() for key, value in flat(node, f"{above}{name}.").items()}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; UserError where there is none in it."""
    return _parsed(path, path.read_bytes())


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({first_line(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: found a JSON {type(content).__name__}, expected an object")
    return content


def append_line(path: Path, content: object) -> None:
    """Append one line of JSON, which is on the disk afterwards."""
    with path.open("a") as file:
        file.write(line(content))
    synchronise(path)


def line(content: object) -> str:
    """``content`` as a line of JSON."""
    return json.dumps(plain(content)) + "\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file; a last line that is still being written is left out."""
    return read_on(path, 0)[0]


def read_on(path: Path, start: int) -> tuple[list[dict[str, Any]], int]:
    """The lines of a JSON-lines file from byte ``start`` on, and the byte after the last whole one."""
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        whole = [line for line in file if line.endswith(b"\n")]
    return [_parsed(path, line) for line in whole], start + sum(map(len, whole))


def save_model(path: Path, state: Mapping[str, torch.Tensor], *, model: Values, dataset: str, rounds: int) -> None:
    """Write a model with its config group and the name of its data set, by which it is rebuilt."""
    metadata = {"model": json.dumps(dict(model), sort_keys=True), "dataset": dataset, "rounds": str(rounds)}
    write_tensors(path, state, metadata)


def clear_drafts(directory: Path) -> None:
    """Remove what a run left half-written when it was killed, in its directory and among its checkpoints."""
    for file in (*directory.glob(".*.part"), *(directory / CHECKPOINTS).glob(".*.part")):
        file.unlink(missing_ok=True)


def unwritten(error: OSError | SafetensorError) -> str:
    """Which file could not be written and why, in one line."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{Path(str(error.filename)).name.lstrip('.')}: " if error.filename else ""
        return f"a file of the run could not be written: {name}{error.strerror}"
    return f"a file of the run could not be written: {first_line(error)}"


TENSOR = "tensor:"


def save_state(path: Path, state: Mapping[str, object]) -> None:
    """Write what a server carries from round to round: ``path`` as JSON, and the tensors at its leaves beside it.

    A tensor is a name in the JSON, under which ``<stem>.state.safetensors`` holds it; without tensors there is no such
    file. `load_state` undoes it.
    """
    tensors: dict[str, torch.Tensor] = {}

    def outline(value: object, name: str) -> object:
        if isinstance(value, torch.Tensor):
            tensors[name] = value.detach().clone()  # the library refuses tensors that share their memory
            return TENSOR + name
        if isinstance(value, Mapping):
            # A list of pairs would lose nothing either, but nobody could read it; torch's optimizers number theirs.
            numbered = {"int-keys": True} if value and all(type(key) is int for key in value) else {}
            return numbered | {str(key): outline(item, f"{name}/{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [outline(item, f"{name}/{place}") for place, item in enumerate(value)]
        return value

    written = outline(state, "")
    if tensors:
        write_tensors(_beside(path), tensors)
    write_json(path, written)


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote; UserError for anything else."""
    beside = _beside(path)
    tensors = read_tensors(beside)[0] if beside.exists() else {}

    def restore(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(TENSOR):
            return tensors[value.removeprefix(TENSOR)]
        if isinstance(value, dict):
            numbered = value.get("int-keys", False)
            return {int(k) if numbered else k: restore(item) for k, item in value.items() if k != "int-keys"}
        if isinstance(value, list):
            return [restore(item) for item in value]
        return value

    content = read_json(path)
    try:
        return dict(restore(content))
    except KeyError as error:
        raise UserError(f"{path}: names the tensor {error}, which {beside.name} does not hold") from None
    except ValueError as error:
        raise UserError(f"{path}: not the state of a run ({first_line(error)})") from None


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}.state.safetensors")


def load_model(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """State dict and metadata of a model file, or of the run directory that holds one; UserError if there is none."""
    file = path / MODEL if path.is_dir() else path
    if not file.exists():
        raise UserError(f"{file}: no such file; expected a run directory or a {MODEL}")
    return read_tensors(file)
