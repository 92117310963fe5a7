"""Networks as ONNX files, for machines that have ONNX Runtime and no PyTorch."""

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fedgh_app.errors import UserError
from fedgh_app.pose.data.batches import MEAN, STD
from fedgh_app.pose.data.crops import PADDING
from fedgh_app.pose.models.decoding import Confidence, Decode
from fedgh_app.pose.models.heatmaps import Size
from fedgh_app.pose.prediction.prediction import Predictor, predictor_of
from fedgh_app.task import Trained
from fedgh_app.vision.files import replacing

INPUT, OUTPUTS = "images", ("keypoints", "maps")
# Batch sizes that the check tries: the file must not have grown into the one it was traced with.
CHECKED = (1, 3)
# How far ONNX Runtime may be from PyTorch: maps by this share of the largest value, keypoints by pixels of the input,
# their confidences by as much.
MAP_TOLERANCE, KEYPOINT_TOLERANCE = 1e-4, 0.01


@dataclass(frozen=True)
class Agreement:
    """Largest differences between ONNX Runtime and PyTorch: of maps, as a share of their largest value; of keypoints
    read from the same maps, in input pixels and confidence."""

    maps: float
    keypoints: float

    def __str__(self) -> str:
        return (
            f"ONNX Runtime and PyTorch agree: maps within {self.maps:.1e} of their largest value (at most "
            f"{MAP_TOLERANCE:g}), keypoints within {self.keypoints:.1e} pixels (at most {KEYPOINT_TOLERANCE:g})"
        )


class KeypointNet(nn.Module):
    """Images (N, 3, h, w) to keypoints (N, J, 3), x, y in input pixels and confidence, and maps (N, J, h', w')."""

    def __init__(self, model: nn.Module, decode: Decode, confidence: Confidence, input_size: Size) -> None:
        super().__init__()
        self.model, self.decode, self.confidence, self.input_size = model, decode, confidence, input_size

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Keypoints and maps of normalised images."""
        maps = self.model(images)
        return self.read(maps), maps

    def read(self, maps: Tensor) -> Tensor:
        """Keypoints (N, J, 3) of maps."""
        points, _ = self.decode(maps, self.input_size)
        return torch.cat([points, self.confidence(maps)[..., None]], -1)


def export(run: Trained, path: Path, *, decoding: str | None = None) -> Agreement:
    """Write a run's model to an ONNX file, with what says where it comes from; see `write`."""
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--out {path}: expected a file in a folder that exists")
    about = {"dataset": run.spec.title, "licence": run.spec.licence, "source": run.spec.source}
    about |= {"run": run.directory.resolve().name, "rounds": str(run.metadata.get("rounds", ""))}
    return write(predictor_of(run, decoding=decoding, flip_test=False), path, about)


def write(predictor: Predictor, path: Path, about: Mapping[str, str]) -> Agreement:
    """Write the predictor's network with its decoding to the ONNX file `path`, once it was seen to agree with PyTorch.

    Args:
        predictor: the model and how its maps are read. A flip test is not exported: it is a second pass.
        path: the file.
        about: what its metadata say beside the keypoints and how an input is made.

    Raises:
        UserError: onnx is not installed, the file cannot be written, or the two disagree; no file is left then.
    """
    require("onnx", "onnxscript", "onnxruntime")
    spec = predictor.spec
    shape = {"keypoints": spec.keypoints, "skeleton": spec.skeleton, "input_size": predictor.input_size}
    stated = {**shape, "mean": MEAN, "std": STD, "padding": PADDING}
    metadata = {**{name: json.dumps(value) for name, value in stated.items()}, **about}
    net = KeypointNet(predictor.model.cpu(), predictor.decode, predictor.confidence, predictor.input_size).eval()
    try:
        with replacing(path) as draft:
            to_onnx(net, predictor.input_size, draft, outputs=OUTPUTS, metadata=metadata)
            return check(net, draft, name=str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def to_onnx(
    model: nn.Module,
    input_size: Size,
    path: Path,
    *,
    outputs: Sequence[str] = ("maps",),
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a network of images (N, 3, h, w), any N, in its mode to an ONNX file; UserError where onnx is missing."""
    require("onnx", "onnxscript")
    # Two images, not one: a size of one would be taken for a constant.
    images = torch.zeros(2, 3, *input_size)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            model,
            (images,),
            input_names=[INPUT],
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata or {})
    program.save(str(path), external_data=False)


def check(net: KeypointNet, path: Path, name: str) -> Agreement:
    """Run the ONNX file beside the network on random images; a UserError that calls it `name` where they disagree.

    Keypoints are compared as both read them from ONNX Runtime's maps: of two pixels that are equally high but for the
    last bit, either may be the highest.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    maps_apart = keypoints_apart = 0.0
    for count in CHECKED:
        images = torch.randn(count, 3, *net.input_size, generator=generator)
        keypoints, maps = (torch.from_numpy(found) for found in session.run(list(OUTPUTS), {INPUT: images.numpy()}))
        with torch.inference_mode():
            own, read = net.model(images), net.read(maps)
        largest = own.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        maps_apart = max(maps_apart, float((maps - own).abs().max() / largest))
        keypoints_apart = max(keypoints_apart, float((keypoints - read).abs().max()))
    # Not the other way round: of a nan every comparison is false.
    if not (maps_apart <= MAP_TOLERANCE and keypoints_apart <= KEYPOINT_TOLERANCE):
        raise UserError(
            f"{name}: ONNX Runtime and PyTorch disagree: maps by {maps_apart:.1e} of their largest value, expected "
            f"at most {MAP_TOLERANCE:g}; keypoints by {keypoints_apart:.1e} pixels, expected at most "
            f"{KEYPOINT_TOLERANCE:g}"
        )
    return Agreement(maps_apart, keypoints_apart)


def require(*packages: str) -> None:
    """Refuse to go on without packages of the extra `export`."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(f"{package} is not installed; expected: pip install 'fedgh[export]'") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch's exporter says of its own steps and of its own use of deprecated functions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
