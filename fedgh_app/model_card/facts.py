"""What is known of a run once it has ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fedgh_app.config.combinations import keeps_nothing
from fedgh_app.data import site
from fedgh_app.reports.markdown import plain
from fedgh_app.runs.history import Round


class Facts:
    """What the sections of a card are written from.

    Attributes:
        directory, config, result, history, failure: as in `fedgh_app.model_card.render`.
        specs: its data sets by name.
        rounds: the last one.
        metric: the headline's name.
        clients: what ``result.json`` says of each.
        clusters: the members of each after the last round.
        local: whether the clients were trained alone.
        alone: whether no updates were exchanged: that, or all data were in one place.
        whole: whether the run's models are whole, nothing being kept by the clients.
    """

    def __init__(
        self,
        directory: Path,
        config: DictConfig,
        result: Mapping[str, Any],
        history: list[Round],
        failure: str | None,
    ) -> None:
        self.directory, self.config, self.result, self.failure = directory, config, result, failure
        self.history = history
        self.specs = site.specs(config)
        self.rounds = history[-1].round if history else int(result["rounds"])
        self.metric = site.headline(config)
        self.clients: dict[str, dict[str, Any]] = dict(result["clients"])
        self.clusters = history[-1].clusters if history else {}
        self.local = config.runtime.name == "local"
        self.alone = config.runtime.name in ("local", "centralised")
        self.whole = keeps_nothing(config)

    def keypoints(self) -> list[str]:
        """The names in all data sets, each once."""
        return list(dict.fromkeys(name for spec in self.specs.values() for name in spec.keypoints))

    def worst(self) -> tuple[str, float] | None:
        """The client with the lowest PCK on its own test images, and that; None of fewer than two."""
        known = {name: pck for name, pck in self.result["clients_pck"].items() if pck is not None}
        return min(known.items(), key=lambda pair: (pair[1], pair[0])) if len(known) > 1 else None

    def client(self, name: str) -> str:
        """A client by its name and what it holds."""
        label = plain(str(self.clients.get(name, {}).get("label", name)))
        return label if label in (name, f"client {name}") else f"{plain(name)} ({label})"
