"""The trained model."""

from pathlib import Path

from fedgh_app.runs.directory import MODEL
from fedgh_app.server.callback import Callback
from fedgh_app.server.federation import Federation
from fedgh_app.server.persistence import save_models


class Model(Callback):
    """Writes ``model.safetensors`` at the end, also of a run that failed, whose last good model it holds."""

    def close(self, federation: Federation, failure: str | None) -> None:
        """Write the model of all clients, or each cluster's; a run that was resumed may have left other clusters'."""
        stem, directory = Path(MODEL).stem, federation.directory
        last = federation.history[-1].round if federation.history else 0
        written = save_models(federation, directory, stem, last)
        for file in set(directory.glob(f"{stem}.*safetensors")) - set(written):
            file.unlink()
