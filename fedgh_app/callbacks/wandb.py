"""Weights & Biases: metrics of every round, the config, the pictures.

Without a key the run is written to disk, and the end tells how to upload it.
"""

import netrc
import os
from collections.abc import Collection, Mapping
from logging import WARNING
from pathlib import Path
from typing import Any, Literal

import httpx
from flwr.common.logger import log

from fedgh_app.errors import first_line
from fedgh_app.resources import Values
from fedgh_app.runs.directory import PLOTS
from fedgh_app.runs.history import Round
from fedgh_app.runs.records import Tracking
from fedgh_app.server.callback import Callback
from fedgh_app.server.federation import Federation

REACH_SECONDS = 5.0  # for a server to answer at all
INIT_SECONDS = 15.0  # for one that answers to begin a run
MOST_CLIENTS = 50  # of more, W&B gets no number of a single client: each is a chart, and slows the page down
FINISH_SECONDS = 30.0  # for uploading what is left at the end, the plots above all


class WandB(Callback):
    """Logs a federation to W&B, and always finishes what it started; ``tracking=none`` tracks nothing.

    A server that does not answer costs seconds, never the run: tracking is then offline, or ends with what was uploaded
    and the whole of it on disk.
    """

    def __init__(self, tracking: Values) -> None:
        self.tracking = tracking
        self.run: Any = None
        self.failed = False

    def after_round(self, federation: Federation, current: Round) -> None:
        """Log every number of the round."""
        if self.failed or self.tracking["name"] == "none":
            return
        # Tracking that does not start, or breaks, must not take the training with it.
        try:
            if self.run is None:
                self._start(federation)
            self._log(current, federation.clients if len(federation.clients) > MOST_CLIENTS else ())
        except Exception as error:
            self.failed = True
            log(WARNING, "W&B failed, this run is not tracked from round %d on: %s", current.round, first_line(error))

    def close(self, federation: Federation, failure: str | None) -> None:
        """Log the plots, finish, and say where the run lies."""
        if self.run is None:
            return
        import wandb

        folder = str(Path(self.run.dir).parent)
        mode: Literal["online", "offline"] = "offline"
        url, whole = None, False
        try:
            for plot in sorted((federation.directory / PLOTS).glob("*.png")):
                self.run.log({f"plots/{plot.stem}": wandb.Image(str(plot))})
            if failure:
                self.run.summary["failure"] = failure
            if not self.run.offline:
                mode, url = "online", self.run.url
            self.run.finish(exit_code=1 if failure else 0)
            whole = mode == "online" and not self.failed
        except TimeoutError:
            log(WARNING, "W&B took longer than %g seconds at the end; what it lacks is on disk", FINISH_SECONDS)
        finally:
            sync = None if whole else f"wandb sync {folder}"
            Tracking(mode=mode, url=url, folder=folder, sync=sync).write(federation.directory)

    def _log(self, current: Round, without: Collection[str]) -> None:
        evaluate = current.evaluate.model_dump(exclude_defaults=True)
        costs = {"seconds": current.seconds, "bytes": current.bytes}
        self.run.log(flatten({**costs, **evaluate}, without=without), step=current.round, commit=False)
        parts = {"train": current.train, "strategy": current.strategy, "clusters": _clusters(current)}
        axes = {"selection": current.selection, "distillation": current.distillation, "privacy": current.privacy}
        self.run.log(flatten({**parts, **axes}, without=without), step=current.round)

    def _start(self, federation: Federation) -> None:
        # Its own reports on itself go to the same server, and would be waited for when that is gone.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        mode: Any = self.tracking["mode"] or ("online" if has_key() else "offline")
        if mode == "online" and not reachable(base_url()):
            log(WARNING, "W&B at %s does not answer within %g seconds: tracking offline", base_url(), REACH_SECONDS)
            mode = "offline"
        try:
            self.run = self._init(federation, mode)
        except wandb.errors.CommError as error:
            if mode != "online":
                raise
            log(WARNING, "W&B at %s does not answer (%s): tracking offline", base_url(), first_line(error))
            wandb.teardown()  # else the id that was begun is in use
            self.run = self._init(federation, "offline")

    def _init(self, federation: Federation, mode: Any) -> Any:
        import wandb

        return wandb.init(
            project=self.tracking["project"],
            entity=self.tracking["entity"],
            group=self.tracking["group"],
            name=federation.directory.name,
            id=federation.id,
            resume="allow" if federation.session else None,
            dir=str(federation.directory),
            mode=mode,
            config=dict(federation.values),
            settings=wandb.Settings(
                console="off",
                silent=True,
                x_disable_stats=True,
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )


def _clusters(current: Round) -> dict[str, Any]:
    """How many clusters there are, and the number of each client's, which can be drawn over the rounds."""
    numbers = {name: place for place, name in enumerate(current.clusters)}
    of_client = {client: numbers[name] for name, members in current.clusters.items() for client in members}
    return {"count": len(numbers), "of": of_client} if numbers else {}


def has_key() -> bool:
    """Whether W&B would find an API key: ``WANDB_API_KEY``, or a login kept in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    file = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return netrc.netrc(str(file)).authenticators(base_url().split("//")[-1]) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def base_url() -> str:
    """Where W&B's server is."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")


def reachable(url: str) -> bool:
    """Whether a server answers there, whatever it says, within `REACH_SECONDS`."""
    # Nothing is sent that a certificate would have to protect, and W&B may be told of one that is not known here.
    try:
        httpx.head(url, timeout=REACH_SECONDS, verify=False)
    except (httpx.TransportError, httpx.InvalidURL):
        return False
    return True


def flatten(tree: Mapping[str, Any], prefix: str = "", without: Collection[str] = ()) -> dict[str, float]:
    """The numbers of a nested table under ``a/b/c``, no matrices and no words; but for those of clients ``without``."""
    numbers: dict[str, float] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key.partition("#")[0] in without:  # ``3#2`` is the second update of client 3 in a round
            continue
        if isinstance(value, Mapping):
            numbers |= flatten(value, f"{name}/", without)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[name] = value
    return numbers
