"""The pictures of a run."""

from fedgh_app.errors import UserError
from fedgh_app.plots import curves, timelines, updates
from fedgh_app.runs.directory import PLOTS
from fedgh_app.server.callback import Callback
from fedgh_app.server.federation import Federation
from fedgh_app.words import plural


class Plots(Callback):
    """Draws ``plots/*.png`` once the run has ended, also when it failed; before, training should have the time."""

    def close(self, federation: Federation, failure: str | None) -> None:
        """Draw what the history holds."""
        history = federation.history
        if not history:
            return
        folder = federation.directory / PLOTS
        folder.mkdir(exist_ok=True)
        title = f"{type(federation.strategy).__name__} on {federation.data.name}"
        metric = federation.data.headline
        labels = {name: client.label for name, client in federation.clients.items()}
        part = federation.task.part
        curves.part_curves(history, folder / f"{plural(part)}.png", title, metric, part)
        curves.client_curves(history, labels, folder / "clients.png", title, metric)
        updates.cosine_matrices(history, labels, folder / "cosines.png", title)
        updates.weights_and_conflicts(history, labels, folder / "weights.png", title)
        timelines.staleness(history, labels, folder / "staleness.png", title)
        timelines.clusters(history, labels, folder / "clusters.png", title)
        curves.epsilon(history, folder / "epsilon.png", title)
        if federation.settings.evaluate.central_every and federation.is_central:
            try:
                examples = federation.data.only.examples
            except UserError:
                return  # a server without images has none to draw on
            learner = federation.learner()
            learner.model.load_state_dict(federation.state_dict())
            federation.task.draw(learner, examples, folder / "predictions.png")
