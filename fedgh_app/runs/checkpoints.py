"""The checkpoints of a run directory: how they are named, what they hold, and which of them a run goes on after."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from fedgh_app.errors import UserError
from fedgh_app.runs import storage
from fedgh_app.runs.directory import CHECKPOINTS
from fedgh_app.runs.records import Record, RecordFile, Seconds, Share
from fedgh_app.runs.result import RESULT, Result
from fedgh_app.vision.tensors import read_tensors


class Best(RecordFile):
    """Which checkpoint has the best headline; in the checkpoints' folder."""

    NAME = "best.json"
    round: int
    score: Share


class ServerState(Record):
    """What a server carries from round to round beside the models: ``round-NNNN.json``, with tensors at its leaves."""

    EXPECTED: ClassVar[str] = "a checkpoint of this run"

    round: int  # the last round that is in it
    id: str  # what clients file their own state under
    session: int  # how often the run was resumed
    strategy: dict[str, Any]  # what it carries, as likewise those below
    edge_strategy: dict[str, Any] = {}
    mode: dict[str, Any]
    topology: dict[str, Any]
    selection: dict[str, Any]
    parts: dict[str, Any]  # what the other axes carry, by config group
    accepted: dict[str, int]  # the draw of the last update that was accepted from each client
    cohorts: dict[str, str]  # whose model each client is sent
    seconds: dict[str, Seconds]  # as `fedgh_app.server.federation.Federation.seconds` gives them

    @classmethod
    def load(cls, file: Path) -> Self:
        """From ``file`` and the tensors beside it; UserError where either is damaged."""
        return cls.checked(storage.load_state(file), file)

    def save(self, file: Path) -> None:
        """Into ``file``, and the tensors beside it."""
        storage.save_state(file, dict(self))


def stem(server_round: int) -> str:
    """How the files of a checkpoint begin."""
    return f"round-{server_round:04d}"


def index_file(folder: Path, server_round: int) -> Path:
    """The file without which a checkpoint is none."""
    return folder / f"{stem(server_round)}.json"


def index_files(directory: Path) -> list[Path]:
    """Those of a run directory's checkpoints, the newest first."""
    return sorted((directory / CHECKPOINTS).glob("round-*.json"), key=_round_of, reverse=True)


def keep_only(folder: Path, rounds: set[int]) -> None:
    """Remove the checkpoints of all other rounds."""
    for file in folder.glob("round-*"):
        if _round_of(file) not in rounds:
            file.unlink()


def newest(directory: Path, rounds: int) -> Path:
    """The newest checkpoint that can be read; UserError where there is none, or the run has done its ``rounds``."""
    files = index_files(directory)
    if not files:
        raise UserError(
            f"resume={directory}: found no checkpoint, expected the directory of a run with keep_checkpoints above 0 "
            "that came to its first one; nothing of this run can be kept"
        )
    file = _newest_whole(files)
    done = _round_of(file)
    # A run that was killed after its last round lacks what it writes at its end.
    if done > rounds or (done == rounds and _ended(directory, rounds)):
        raise UserError(
            f"rounds={rounds}: {directory} has {done} already; "
            f"expected more to resume it, such as rounds={done + rounds}"
        )
    return file


def _newest_whole(files: Sequence[Path]) -> Path:
    """The first of ``files`` that a disk has not damaged; UserError on the very first where it has damaged all."""
    faults = []
    for file in files:
        try:
            storage.load_state(file)
            for tensors_file in file.parent.glob(f"{file.stem}.*safetensors"):
                read_tensors(tensors_file)
        except UserError as fault:
            faults.append(fault)
        else:
            return file
    raise faults[0]


def _ended(directory: Path, rounds: int) -> bool:
    """Whether a run wrote its result, the last of its files, and of no fewer than ``rounds`` rounds."""
    with contextlib.suppress(UserError):
        return (directory / RESULT).exists() and Result.read(directory).rounds >= rounds
    return False


def _round_of(file: Path) -> int:
    return int(file.name.removeprefix("round-").partition(".")[0])
