"""Weights & Biases: metrics of every round, the config, the pictures.

Without a key the run is written to disk, and the end tells how to upload it.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from logging import WARNING
from pathlib import Path
from typing import Any

from flwr.common.logger import log
from omegaconf import OmegaConf

from fedgh_app import storage
from fedgh_app.federation import Federation, Round


class Tracker:
    """Logs a federation to W&B, and always finishes what it started."""

    def __init__(self) -> None:
        self.run: Any = None
        self.failed = False

    def after_round(self, run: Federation, this: Round) -> None:
        """Log every number of the round."""
        if self.failed:
            return
        if self.run is None:
            try:
                self._start(run)
            # A tracker that does not start must not take the training with it.
            except Exception as error:
                self.failed = True
                log(WARNING, "W&B did not start, this run is not tracked: %s", error)
                return
        self.run.log(
            flatten({"seconds": this.seconds, "bytes": this.bytes, **this.evaluate}),
            step=this.round,
            commit=False,
        )
        parts = {"train": this.train, "strategy": this.strategy, "clusters": _clusters(this)}
        axes = {"selection": this.selection, "distillation": this.distillation, "privacy": this.privacy}
        self.run.log(flatten({**parts, **axes}), step=this.round)

    def close(self, run: Federation, failure: str | None) -> None:
        """Log the plots, finish, and say where the run lies."""
        if self.run is None:
            return
        import wandb

        try:
            for plot in sorted((run.directory / "plots").glob("*.png")):
                self.run.log({f"plots/{plot.stem}": wandb.Image(str(plot))})
            if failure:
                self.run.summary["failure"] = failure
        finally:
            folder = str(Path(self.run.dir).parent)
            mode, url = ("offline", None) if self.run.offline else ("online", self.run.url)
            self.run.finish(exit_code=1 if failure else 0)
            sync = f"wandb sync {folder}" if mode == "offline" else None
            storage.write_json(
                run.directory / "tracking.json", {"mode": mode, "url": url, "folder": folder, "sync": sync}
            )

    def _start(self, run: Federation) -> None:
        import wandb

        tracking = run.config.tracking
        mode: Any = tracking.mode or ("online" if has_key() else "offline")
        self.run = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            group=tracking.group,
            name=run.directory.name,
            id=run.id,
            resume="allow" if run.session else None,
            dir=str(run.directory),
            mode=mode,
            config=dict(OmegaConf.to_container(run.config)),  # type: ignore[arg-type]
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )


def _clusters(this: Round) -> dict[str, Any]:
    """How many clusters there are, and the number of each client's, which can be drawn over the rounds."""
    numbers = {name: place for place, name in enumerate(this.clusters)}
    of_client = {client: numbers[name] for name, members in this.clusters.items() for client in members}
    return {"count": len(numbers), "of": of_client} if numbers else {}


def has_key() -> bool:
    """Whether W&B would find an API key: ``WANDB_API_KEY``, or a login kept in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    file = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].strip("/")
    try:
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a nested table under ``a/b/c``; matrices and words stay in ``history.jsonl``."""
    found: dict[str, float] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flatten(value, f"{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
    return found
