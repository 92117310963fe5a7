"""What stays with a client from one of its trainings to the next, and never leaves its site.

It lies in a file on the client's own side. Flower's ``Context.state`` lives in memory only, in a simulation in the
server's process, and for all clients at once.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Self

from safetensors import safe_open
from torch import Tensor

from fedgh_app.config.compose import fedgh_home
from fedgh_app.config.settings import Settings
from fedgh_app.errors import RunFailed, UserError, first_line
from fedgh_app.runs.directory import CLIENTS
from fedgh_app.vision.tensors import read_tensors, write_tensors


@dataclass(eq=False)
class LocalState:
    """Tensors by name, as each of this client's trainings left them that may still count.

    What a training leaves is only proposed: the server's next message says whether it took the update. Until then a
    rejected reply, or a server that repeats the round, finds the client as it was. And since a server that is resumed
    goes on from its latest checkpoint, what that speaks of is kept too.
    """

    # What trainings left, by their number; before any training, number 0, there was nothing.
    versions: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    _: KW_ONLY
    accepted_draw: int = 0  # number of the training that counts
    settled_draw: int = 0  # number of the training that counts in the server's latest checkpoint
    draw: int = 0  # number of the latest training
    session: int = 0  # how often the run had been resumed at that training

    @property
    def accepted(self) -> dict[str, Tensor]:
        """What counts."""
        return self.versions.get(self.accepted_draw, {})

    def acknowledge(self, draw: int, settled: int | None = None, session: int = 0) -> None:
        """Take it that training number ``draw`` is the last whose update the server accepted; 0 for none.

        Its latest checkpoint holds number ``settled`` (None: ``draw``, no way back), and it was resumed ``session``
        times. Raises RunFailed where this client holds that training's state no more.
        """
        if draw not in self.versions and not draw == self.settled_draw == 0:
            raise RunFailed(
                f"own state is of training {self.accepted_draw}, the server goes on from training {draw}; "
                "expected the same: this client and the server are not of one run any more"
            )
        if session != self.session:  # later trainings are of rounds that the server has lost
            self.session, self.draw = session, draw
        self.accepted_draw, self.settled_draw = draw, draw if settled is None else settled
        self._forget()

    def propose(self, draw: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep what training number ``draw`` left until the server says what became of it."""
        self.versions[draw], self.draw = dict(tensors), draw
        self._forget()

    def _forget(self) -> None:
        kept = {self.settled_draw, self.accepted_draw, self.draw}
        self.versions = {number: tensors for number, tensors in self.versions.items() if number in kept}

    @classmethod
    def open(cls, file: Path) -> Self:
        """From ``file``; empty where there is none. Raises UserError where it holds something else."""
        if not file.exists():
            return cls()
        tensors, metadata = read_tensors(file)
        found: dict[int, dict[str, Tensor]] = {}
        try:
            for key, tensor in tensors.items():
                number, _, name = key.partition("/")
                found.setdefault(int(number), {})[name] = tensor
            return cls(found, **{key: int(value) for key, value in metadata.items()})
        except (ValueError, TypeError) as error:
            raise UserError(f"{file}: not the state of a client ({first_line(error)})") from None

    def store(self, file: Path) -> None:
        """Into ``file``, atomically, unless that is of a later training: an overdue one may end after its successor."""
        if _age_of(file) > (self.session, self.draw):
            return
        about = {key: value for key, value in vars(self).items() if key != "versions"}
        file.parent.mkdir(parents=True, exist_ok=True)
        flat = {f"{number}/{key}": value for number, tensors in self.versions.items() for key, value in tensors.items()}
        write_tensors(file, flat, {key: str(value) for key, value in about.items()})


def _age_of(file: Path) -> tuple[int, int]:
    """Session and number of the training that a file is of; the least where there is none."""
    if not file.exists():
        return 0, 0
    with safe_open(file, framework="pt") as stored:
        about = stored.metadata()
    return int(about["session"]), int(about["draw"])


def file_of(settings: Settings, run: str, client: str) -> Path:
    """Where a client keeps its own state of a run: in the run directory if this machine has it, else in FEDGH_HOME.

    Raises RunFailed where ``run`` is no id, as the server says it; it must not choose where a site writes.
    """
    if not re.fullmatch(r"[0-9a-f]{32}", run):
        raise RunFailed(f"run={run!r}: expected an id of 32 hexadecimal digits")
    known = "".join(c if c.isalnum() or c in "-_" else "_" for c in client)
    # Names that differ only in what a path cannot hold stay apart.
    safe = f"{known}-{hashlib.sha256(client.encode()).hexdigest()[:8]}.safetensors"
    if settings.run_dir is not None and settings.runtime.name in ("simulation", "inprocess"):
        return Path(settings.run_dir) / CLIENTS / safe
    return fedgh_home() / CLIENTS / run / safe
