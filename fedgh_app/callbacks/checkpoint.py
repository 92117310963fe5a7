"""Checkpoints, from which a run that was killed goes on."""

from fedgh_app.runs.checkpoints import Best, ServerState, index_file, keep_only, stem
from fedgh_app.runs.directory import CHECKPOINTS
from fedgh_app.runs.history import Round, scored
from fedgh_app.server.callback import Callback
from fedgh_app.server.federation import Federation
from fedgh_app.server.persistence import save_models


class Checkpoint(Callback):
    """Keeps the latest ``keep`` models and the best, with what the server carries between rounds; 0 keeps none."""

    def __init__(self, keep: int) -> None:
        self.keep = keep

    def after_round(self, federation: Federation, current: Round) -> None:
        """Write ``checkpoints/round-NNNN.json`` and its tensors, and drop what is neither latest nor best."""
        if not self.keep:
            return
        folder = federation.directory / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        save_models(federation, folder, stem(current.round), current.round)
        # Last, so that a checkpoint that was begun but not finished has no such file, and is none.
        ServerState(round=current.round, **federation.server_state()).save(index_file(folder, current.round))
        federation.settled = dict(federation.accepted)
        best = best_round(federation)
        if best == current.round:
            Best(round=best, score=current.evaluate.headline.score).write(folder)
        latest = {current.round - back for back in range(self.keep)}
        keep_only(folder, latest if best is None else latest | {best})


def best_round(federation: Federation) -> int | None:
    """The round after training with the best headline, of equals the first; None where nothing was measured."""
    scores = {number: score for number, score in scored(federation.history).items() if number}
    return max(scores, key=lambda number: (scores[number], -number), default=None)
