"""What stays with a client from one of its trainings to the next, and never leaves its site.

Flower keeps a client's ``Context.state`` in memory only, so it is also written to a file on the client's own side.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedgh_app.config import fedgh_home
from fedgh_app.storage import replacing

ACCEPTED, PROPOSED = "accepted", "proposed"


class LocalState:
    """Tensors by name, as after the last training whose update the server accepted.

    What a training leaves is only proposed: the server's next message says whether it took the update. Until then a
    rejected reply, or a server that went back to an earlier round, finds the client as it was.

    Attributes:
        accepted: what counts.
        proposed: what the latest training left.
        draw: the number of that training.
    """

    def __init__(
        self, accepted: Mapping[str, Tensor] | None = None, proposed: Mapping[str, Tensor] | None = None, draw: int = 0
    ) -> None:
        self.accepted = dict(accepted or {})
        self.proposed = dict(proposed or {})
        self.draw = draw

    def acknowledge(self, draw: int) -> None:
        """Take it that the server accepted training number ``draw``, and none after it."""
        if draw == self.draw and self.proposed:
            self.accepted, self.proposed = self.proposed, {}

    def propose(self, draw: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep what training number ``draw`` left until the server says what became of it."""
        self.proposed, self.draw = dict(tensors), draw

    @classmethod
    def open(cls, state: RecordDict, file: Path) -> LocalState:
        """From a client's ``Context.state``, else from ``file``, else empty."""
        if "local" in state:
            accepted, proposed = (
                {key: torch.from_numpy(array.numpy()) for key, array in state.array_records[part].items()}
                for part in (ACCEPTED, PROPOSED)
            )
            return cls(accepted, proposed, int(state.config_records["local"]["draw"]))  # type: ignore[arg-type]
        if not file.exists():
            return cls()
        found: dict[str, dict[str, Tensor]] = {ACCEPTED: {}, PROPOSED: {}}
        with safe_open(file, framework="pt") as stored:
            for key in stored.keys():  # noqa: SIM118
                part, _, name = key.partition("/")
                found[part][name] = stored.get_tensor(key)
            return cls(found[ACCEPTED], found[PROPOSED], int(stored.metadata()["draw"]))

    def store(self, state: RecordDict, file: Path) -> None:
        """Into ``Context.state`` and, atomically, into ``file``."""
        parts = {ACCEPTED: self.accepted, PROPOSED: self.proposed}
        for part, tensors in parts.items():
            state[part] = ArrayRecord({key: Array(tensor.numpy()) for key, tensor in tensors.items()})
        state["local"] = ConfigRecord({"draw": self.draw})
        file.parent.mkdir(parents=True, exist_ok=True)
        flat = {
            f"{part}/{key}": tensor.contiguous() for part, tensors in parts.items() for key, tensor in tensors.items()
        }
        with replacing(file) as draft:
            save_file(flat, draft, metadata={"draw": str(self.draw)})


def file_of(run: str, client: str) -> Path:
    """Where a client keeps its own state of a run; the names are made safe for a path."""
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in client)
    return fedgh_home() / "clients" / run / f"{safe}.safetensors"
