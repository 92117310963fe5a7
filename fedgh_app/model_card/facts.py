"""What is known of a run once it has ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedgh_app.resources import Values
from fedgh_app.runs.history import Round
from fedgh_app.runs.result import Result
from fedgh_app.task import Spec
from fedgh_app.vision.card import Card
from fedgh_app.words import plain


@dataclass(frozen=True, eq=False)
class Facts:
    """What the sections of a card are written from."""

    directory: Path  # the run directory, whose models and plots are named
    values: Values  # the run's config, resolved
    result: Result  # what it came to; of a run that failed, as far as it came
    specs: Mapping[str, Spec]  # its data sets by name
    card: Card  # what its task says of the model
    history: Sequence[Round] = ()  # its rounds; none for clients that were trained alone
    failure: str | None = None  # why it failed

    @property
    def kept(self) -> str:
        """What of the model each client keeps to itself, such as ``head``; empty where it sends all."""
        sharing = self.values["sharing"]
        return {"nothing": "", "batch_norm": "BatchNorm layers"}.get(
            sharing.get("keeps", ""), ", ".join(sharing.get("modules", ["part"]))
        )

    @property
    def rounds(self) -> int:
        """The last one."""
        return self.history[-1].round if self.history else self.result.rounds

    @property
    def clusters(self) -> Mapping[str, Sequence[str]]:
        """The members of each after the last round."""
        return self.history[-1].clusters if self.history else {}

    @property
    def local(self) -> bool:
        """Whether the clients were trained alone."""
        return bool(self.values["runtime"]["name"] == "local")

    @property
    def alone(self) -> bool:
        """Whether no updates were exchanged: that, or all data were in one place."""
        return self.local or self.values["runtime"]["name"] == "centralised"

    def worst(self) -> tuple[str, float] | None:
        """The client with the lowest headline on its own test images, and that; None of fewer than two."""
        known = {name: score for name, score in self.result.clients_score.items() if score is not None}
        return min(known.items(), key=lambda pair: (pair[1], pair[0])) if len(known) > 1 else None

    def client(self, name: str) -> str:
        """A client by its name and what it holds."""
        label = plain(self.result.clients[name].label) if name in self.result.clients else name
        return label if label in (name, f"client {name}") else f"{plain(name)} ({label})"
