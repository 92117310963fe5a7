"""What happens after every round beside the round: evaluation, checkpoints, the run directory, pictures, tracking.

One class a habit; the round loop knows none of them by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from logging import INFO

from flwr.common.logger import log
from omegaconf import DictConfig
from torch import nn

from fedgh_app import model_card
from fedgh_app.callbacks.tracking import Tracker
from fedgh_app.config.combinations import is_central
from fedgh_app.config.instantiation import instantiate
from fedgh_app.data import site
from fedgh_app.errors import UserError
from fedgh_app.plots import curves, timelines, updates
from fedgh_app.plots.predictions import predictions
from fedgh_app.pose.data.batches import Batches
from fedgh_app.pose.evaluation.tally import tally
from fedgh_app.pose.training import evaluate
from fedgh_app.runs import storage
from fedgh_app.runs.outcome import headline, result_of
from fedgh_app.server.checkpoints import Checkpoint, save
from fedgh_app.server.federation import Callback, Federation, Round


def usual_callbacks(config: DictConfig) -> Iterator[Callback]:
    """The callbacks of every run, in their order: what adds to a round comes before what records it."""
    if config.evaluate.central_every and is_central(config):
        yield CentralEvaluation()
    yield History()
    if config.keep_checkpoints:  # after the history, which a run that is resumed has then up to its checkpoint
        yield Checkpoint(config.keep_checkpoints)
    yield Model()
    yield Progress()
    yield Plots()
    yield ModelCard()
    if config.tracking.name == "wandb":
        yield Tracker()


class Habit:
    """A callback that does nothing at the end."""

    def close(self, run: Federation, failure: str | None) -> None:
        """Nothing to close."""


class CentralEvaluation(Habit):
    """Tests the global model on the test images that the server can see."""

    def __init__(self) -> None:
        self.model: nn.Module | None = None  # built once: drawing initial weights takes as long as testing some

    def after_round(self, run: Federation, this: Round) -> None:
        """Add ``evaluate["central"]`` to the round."""
        if not run.due(run.config.evaluate.central_every, this.round):
            return
        with this.timed("evaluate_central"):
            cache = site.open_data(run.config)
            test = cache.indices("test")
            if len(test) == 0:
                return
            if self.model is None:
                self.model = site.build_model(run.config, run.spec)
            self.model.load_state_dict(run.state_dict())
            batches = Batches(cache, test, batch_size=4 * run.config.batch_size, seed=0, shuffle=False)
            loss = instantiate(run.config.loss, "loss")
            with site.server_threads(run.config):
                found = evaluate(
                    self.model,
                    batches,
                    loss,
                    device=site.device_of(run.config),
                    decode=site.decoder_of(run.config, self.model),
                    flip_permutation=site.flip_permutation(run.config, run.spec),
                )
        counts = tally(found, run.spec.keypoints, run.spec.thresholds[0])
        this.evaluate["central"] = {**counts.summary(), "loss": found.loss, "examples": len(test)}
        this.seconds["total"] = this.seconds.get("total", 0.0) + this.seconds["evaluate_central"]


class History(Habit):
    """Appends each round to ``history.jsonl``."""

    def after_round(self, run: Federation, this: Round) -> None:
        """One line of JSON."""
        storage.append_line(run.directory / "history.jsonl", vars(this))


class Model:
    """Writes ``model.safetensors`` at the end, also of a run that failed, whose last good model it holds."""

    def after_round(self, run: Federation, this: Round) -> None:
        """Nothing yet: checkpoints hold the rounds."""

    def close(self, run: Federation, failure: str | None) -> None:
        """Write the model of all clients, or each cluster's; a run that was resumed may have left other clusters'."""
        written = save(run, run.directory, "model", run.history[-1].round if run.history else 0)
        for file in set(run.directory.glob("model.*safetensors")) - set(written):
            file.unlink()


class Progress(Habit):
    """Says each round in Flower's log."""

    def after_round(self, run: Federation, this: Round) -> None:
        """One line."""
        found = {
            "loss": this.train.get("loss"),
            "pck": headline(this.evaluate).get("pck"),
            "seconds": this.seconds.get("total"),
            "epsilon": this.privacy.get("epsilon"),
        }
        said = ", ".join(f"{name} {value:.3f}" for name, value in found.items() if value is not None)
        log(INFO, "round %d/%d: %s", this.round, run.config.rounds, said)


class Plots:
    """Draws ``plots/*.png`` once the run has ended, also when it failed."""

    def after_round(self, run: Federation, this: Round) -> None:
        """Nothing: drawing takes time that training should have."""

    def close(self, run: Federation, failure: str | None) -> None:
        """Draw what the history holds."""
        if not run.history:
            return
        folder = run.directory / "plots"
        folder.mkdir(exist_ok=True)
        title = f"{type(run.strategy).__name__} on {run.config.dataset.spec}"
        metric = site.headline(run.config)
        labels = {name: client.label for name, client in run.clients.items()}
        curves.keypoint_curves(run.history, folder / "keypoints.png", title, metric)
        curves.client_curves(run.history, labels, folder / "clients.png", title, metric)
        updates.cosine_matrices(run.history, labels, folder / "cosines.png", title)
        updates.weights_and_conflicts(run.history, labels, folder / "weights.png", title)
        timelines.staleness(run.history, labels, folder / "staleness.png", title)
        timelines.clusters(run.history, labels, folder / "clusters.png", title)
        curves.epsilon(run.history, folder / "epsilon.png", title)
        if run.config.evaluate.central_every and run.is_central:
            try:
                cache = site.open_data(run.config)
            except UserError:
                return  # a server without images has none to draw on
            model = site.build_model(run.config, run.spec)
            model.load_state_dict(run.state_dict())
            decode, flip = site.decoder_of(run.config, model), site.flip_permutation(run.config, run.spec)
            predictions(model, cache, folder / "predictions.png", decode, flip)


class ModelCard(Habit):
    """Writes ``MODEL_CARD.md`` at the end, also of a run that failed."""

    def after_round(self, run: Federation, this: Round) -> None:
        """Nothing yet."""

    def close(self, run: Federation, failure: str | None) -> None:
        """Write what is known by then."""
        model_card.write(run.directory, run.config, storage.plain(result_of(run)), run.history, failure)
