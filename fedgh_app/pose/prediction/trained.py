"""The trained model of a run, ready to find keypoints in images it has never seen."""

from pathlib import Path
from typing import cast

import torch

from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import DatasetSpec
from fedgh_app.pose.models.decoding import Confidence, MassAtPeak, decoder, peak_height
from fedgh_app.pose.prediction import export as exporting
from fedgh_app.pose.prediction.export import Agreement
from fedgh_app.pose.prediction.prediction import Predictor
from fedgh_app.task import Trained


def predictor(
    run: Trained, *, decoding: str | None = None, flip_test: bool | None = None, batch_size: int = 32
) -> Predictor:
    """The run's model on a GPU if there is one.

    Args:
        run: the run.
        decoding: how its maps are read; None as it was when the run was evaluated.
        flip_test: whether to look at the mirrored crop too; None likewise.
        batch_size: most crops in one pass.
    """
    usual, spec = run.values["evaluate"], cast(DatasetSpec, run.spec)
    height, width = run.dataset["input_size"]
    flips = usual["flip_test"] if flip_test is None else flip_test
    return Predictor(
        model=run.model,
        spec=spec,
        input_size=(int(height), int(width)),
        decode=decoder(run.model, decoding or usual["decoding"], run.loss),
        confidence=confidence(run),
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        batch_size=batch_size,
        flip_permutation=spec.flip_permutation if flips else None,
    )


def export(run: Trained, path: Path, *, decoding: str | None = None) -> Agreement:
    """Write the run's model to an ONNX file, with what says where it comes from; see `export.export`.

    Raises UserError where the export's packages are missing, the file cannot be written, or it disagrees with PyTorch.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--out {path}: expected a file in a folder that exists")
    about = {"dataset": run.spec.title, "licence": run.spec.licence, "source": run.spec.source}
    about |= {"run": run.directory.resolve().name, "rounds": str(run.metadata.get("rounds", ""))}
    return exporting.export(predictor(run, decoding=decoding, flip_test=False), path, about)


def confidence(run: Trained) -> Confidence:
    """How sure the run's model is of a keypoint: what its maps mean depends on what it was trained to."""
    if not run.loss.logits:
        return peak_height
    integral = getattr(run.model, "integral", None)
    return MassAtPeak(sigma=run.loss.sigma, beta=1.0 if integral is None else integral.beta)
