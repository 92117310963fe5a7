"""What stays with a client from one of its trainings to the next, and never leaves its site.

Flower keeps a client's ``Context.state`` in memory only, so it is also written to a file on the client's own side.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from omegaconf import DictConfig
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedgh_app.config import fedgh_home
from fedgh_app.errors import RunFailed
from fedgh_app.pose.files import replacing

ACCEPTED, PROPOSED = "accepted", "proposed"
_ABOUT = "local"


class LocalState:
    """Tensors by name, as after the last training whose update the server accepted.

    What a training leaves is only proposed: the server's next message says whether it took the update. Until then a
    rejected reply, or a server that repeats the round, finds the client as it was.

    Attributes:
        accepted: what counts.
        accepted_draw: the number of the training that left it; 0 before any.
        proposed: what the latest training left.
        draw: the number of that training.
    """

    def __init__(
        self,
        accepted: Mapping[str, Tensor] | None = None,
        proposed: Mapping[str, Tensor] | None = None,
        *,
        accepted_draw: int = 0,
        draw: int = 0,
    ) -> None:
        self.accepted = dict(accepted or {})
        self.proposed = dict(proposed or {})
        self.accepted_draw = accepted_draw
        self.draw = draw

    def acknowledge(self, draw: int) -> None:
        """Take it that training number ``draw`` is the last whose update the server accepted; 0 for none.

        Raises RunFailed where this client holds neither that training's state nor can go back to it.
        """
        if draw == self.draw and self.proposed:
            self.accepted, self.accepted_draw, self.proposed = self.proposed, draw, {}
        if draw != self.accepted_draw:
            raise RunFailed(
                f"own state is of training {self.accepted_draw}, the server goes on from training {draw}; "
                "expected the same: this client and the server are not of one run any more"
            )

    def propose(self, draw: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep what training number ``draw`` left until the server says what became of it."""
        self.proposed, self.draw = dict(tensors), draw

    @classmethod
    def open(cls, state: RecordDict, file: Path) -> LocalState:
        """From a client's ``Context.state`` or from ``file``, whichever is of the later training; else empty.

        An overdue training that ends after its successor may leave an earlier state in the one or the other.
        """
        held = int(state.config_records[_ABOUT]["draw"]) if _ABOUT in state else 0  # type: ignore[arg-type]
        if held and held >= _draw_of(file):
            accepted, proposed = (
                {key: torch.from_numpy(array.numpy()) for key, array in state.array_records[part].items()}
                for part in (ACCEPTED, PROPOSED)
            )
            before = int(state.config_records[_ABOUT]["accepted"])  # type: ignore[arg-type]
            return cls(accepted, proposed, accepted_draw=before, draw=held)
        if not file.exists():
            return cls()
        found: dict[str, dict[str, Tensor]] = {ACCEPTED: {}, PROPOSED: {}}
        with safe_open(file, framework="pt") as stored:
            for key in stored.keys():  # noqa: SIM118
                part, _, name = key.partition("/")
                found[part][name] = stored.get_tensor(key)
            about = stored.metadata()
        return cls(found[ACCEPTED], found[PROPOSED], accepted_draw=int(about["accepted"]), draw=int(about["draw"]))

    def store(self, state: RecordDict, file: Path) -> None:
        """Into ``Context.state`` and, atomically, into ``file``, unless that is of a later training already."""
        parts = {ACCEPTED: self.accepted, PROPOSED: self.proposed}
        for part, tensors in parts.items():
            state[part] = ArrayRecord({key: Array(tensor.numpy()) for key, tensor in tensors.items()})
        about = {"draw": self.draw, "accepted": self.accepted_draw}
        state[_ABOUT] = ConfigRecord(dict(about))
        if _draw_of(file) > self.draw:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        flat = {
            f"{part}/{key}": value.contiguous() for part, tensors in parts.items() for key, value in tensors.items()
        }
        with replacing(file) as draft:
            save_file(flat, draft, metadata={key: str(value) for key, value in about.items()})


def _draw_of(file: Path) -> int:
    """The number of the training that a file is of; 0 without a file."""
    if not file.exists():
        return 0
    with safe_open(file, framework="pt") as stored:
        return int(stored.metadata()["draw"])


def file_of(config: DictConfig, run: str, client: str) -> Path:
    """Where a client keeps its own state of a run: in the run directory if this machine has it, else in FEDGH_HOME.

    Args:
        config: the run's config.
        run: id of the run, as the server says it.
        client: the client's name.

    Raises RunFailed where the server's id is none; it must not choose where a site writes.
    """
    if not re.fullmatch(r"[0-9a-f]{32}", run):
        raise RunFailed(f"run={run!r}: expected an id of 32 hexadecimal digits")
    known = "".join(c if c.isalnum() or c in "-_" else "_" for c in client)
    # Names that differ only in what a path cannot hold stay apart.
    safe = f"{known}-{hashlib.sha256(client.encode()).hexdigest()[:8]}.safetensors"
    if config.run_dir is not None and config.runtime.name in ("simulation", "inprocess"):
        return Path(config.run_dir) / "clients" / safe
    return fedgh_home() / "clients" / run / safe
