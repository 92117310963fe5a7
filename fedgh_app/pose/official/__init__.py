"""Each data set's own evaluation, as its field publishes it: one module a protocol, all with one signature."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

from fedgh_app.pose.data.records import DatasetSpec, load_spec
from fedgh_app.pose.official import coco, lsp, mpii, pck
from fedgh_app.pose.official.scores import Score, Side, check_side

__all__ = ["Score", "Side", "check_side", "protocol_of", "score"]

# Leeds Sports Pose has the keypoints, the file and the metric of its extended set.
ALSO_CALLED = {"lsp": "lspet"}


class Scorer(Protocol):
    """A protocol: truth file and predictions file to percentages."""

    def __call__(
        self,
        spec: DatasetSpec,
        truth: Path,
        predictions: Path,
        *,
        side: Side = "all",
        on_bad: Literal["raise", "skip"] = "raise",
    ) -> Score:
        """Score ``predictions``; UserError where a file is not as expected."""


def protocol_of(spec: DatasetSpec) -> Scorer:
    """COCO's has its own; the others go by the reference length, so a data set of one's own has one too."""
    if spec.name == "coco":
        return coco.score
    return {"head": mpii.score, "torso": lsp.score, "box": pck.score}[spec.reference]


def score(
    dataset: str, truth: Path, predictions: Path, *, side: Side = "all", on_bad: Literal["raise", "skip"] = "raise"
) -> Score:
    """Score a predictions file by the official protocol of a data set, by its name.

    Raises UserError where there is no such data set, or a file is not as expected.
    """
    check_side(side)
    spec = load_spec(ALSO_CALLED.get(dataset, dataset))
    return protocol_of(spec)(spec, Path(truth), Path(predictions), side=side, on_bad=on_bad)
