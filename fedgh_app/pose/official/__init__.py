"""Each data set's own evaluation, as its field publishes it: one module a protocol, all with one signature."""

from collections.abc import Callable
from pathlib import Path

from fedgh_app.pose.data.records import DatasetSpec, OnBad, load_spec
from fedgh_app.pose.official import coco, mpii, pck
from fedgh_app.pose.official.scores import Score, Side, check_side
from fedgh_app.tasks import ALSO_CALLED

__all__ = ["Score", "Side", "check_side", "protocol_of", "score"]

Scorer = Callable[..., Score]  # of a specification, truth and predictions, as those below have them


def protocol_of(spec: DatasetSpec) -> Scorer:
    """COCO's has its own; the others go by the reference length, so a data set of one's own has one too."""
    if spec.name == "coco":
        return coco.score
    return mpii.score if spec.reference == "head" else pck.score


def score(dataset: str, truth: Path, predictions: Path, *, side: Side = "all", on_bad: OnBad = "raise") -> Score:
    """Score predictions by the protocol of the data set of this name; UserError where a file is not as expected."""
    check_side(side)
    spec = load_spec(ALSO_CALLED.get(dataset, dataset))
    return protocol_of(spec)(spec, Path(truth), Path(predictions), side=side, on_bad=on_bad)
