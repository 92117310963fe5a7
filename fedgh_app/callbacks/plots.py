"""The pictures of a run."""

from __future__ import annotations

from fedgh_app.callbacks.callback import Callback
from fedgh_app.data import site
from fedgh_app.errors import UserError
from fedgh_app.plots import curves, timelines, updates
from fedgh_app.plots.predictions import predictions
from fedgh_app.runs.directory import PLOTS
from fedgh_app.server.federation import Federation


class Plots(Callback):
    """Draws ``plots/*.png`` once the run has ended, also when it failed; before, training should have the time."""

    def close(self, federation: Federation, failure: str | None) -> None:
        """Draw what the history holds."""
        history, config = federation.history, federation.config
        if not history:
            return
        folder = federation.directory / PLOTS
        folder.mkdir(exist_ok=True)
        title = f"{type(federation.strategy).__name__} on {config.dataset.spec}"
        metric = site.headline(config)
        labels = {name: client.label for name, client in federation.clients.items()}
        curves.keypoint_curves(history, folder / "keypoints.png", title, metric)
        curves.client_curves(history, labels, folder / "clients.png", title, metric)
        updates.cosine_matrices(history, labels, folder / "cosines.png", title)
        updates.weights_and_conflicts(history, labels, folder / "weights.png", title)
        timelines.staleness(history, labels, folder / "staleness.png", title)
        timelines.clusters(history, labels, folder / "clusters.png", title)
        curves.epsilon(history, folder / "epsilon.png", title)
        if config.evaluate.central_every and federation.is_central:
            try:
                cache = site.open_data(config)
            except UserError:
                return  # a server without images has none to draw on
            model = site.build_model(config, federation.spec)
            model.load_state_dict(federation.state_dict())
            decode, flip = site.decoder_of(config, model), site.flip_permutation(config, federation.spec)
            predictions(model, cache, folder / "predictions.png", decode, flip)
