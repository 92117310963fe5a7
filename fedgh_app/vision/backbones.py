"""Backbones: classifiers without their pooling and classifier, from torchvision or timm, and weights for them.

A backbone takes images (B, 3, H, W) to features (B, C, H/stride, W/stride). Its layers keep the names that they
have in the library, so that the library's checkpoints fit.
"""

import difflib
import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedgh_app.errors import UserError, first_line

# Of torchvision's families: what a forward pass goes through before the pooling. All end at 1/32 of the input.
RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
MOBILENET = ("features",)
SHUFFLENET = ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5")
TORCHVISION = {
    **{f"resnet{depth}": RESNET for depth in (18, 34, 50, 101, 152)},
    **{f"mobilenet_v3_{size}": MOBILENET for size in ("small", "large")},
    **{f"shufflenet_v2_x{width}": SHUFFLENET for width in ("0_5", "1_0", "1_5", "2_0")},
}
TIMM = "timm:"

# The share of a batch in BatchNorm's running statistics. A client's round is some ten steps, after which MobileNetV3's
# own 0.01 would still hold nine tenths of the initial statistics, which are those of no image.
MOMENTUM = 0.1
# GroupNorm's groups, of which the first is taken that divides the channels into groups of four or more: one of a single
# channel would turn a map of one pixel to zero.
GROUPS = (32, 16, 8, 4, 2)
FEWEST_CHANNELS = 4


def build_backbone(name: str) -> tuple[nn.Module, int, int]:
    """A backbone with random weights, its number of output channels, and its stride.

    ``name`` is one of `TORCHVISION`, or ``timm:`` and the name of a model of timm. Raises UserError where there is no
    such backbone, timm is not installed, or its model is no feature extractor as needed.
    """
    if str(name).startswith(TIMM):
        made = _timm(str(name))
    elif name in TORCHVISION:
        made = _torchvision(name)
    else:
        raise UserError(f"model.backbone: found {name!r}, expected one of {', '.join(TORCHVISION)}, or timm:NAME")
    for module in made[0].modules():
        if isinstance(module, _BatchNorm):
            module.momentum = MOMENTUM
    return made


def load_weights(backbone: nn.Module, name: str, weights: str) -> None:
    """Fill the backbone called ``name`` from ``weights``, a file or the name of a torchvision weight enum.

    What else a checkpoint holds (a classifier, a head) is unused. Raises UserError where it cannot be read or lacks
    something.
    """
    # A checkpoint of a whole PoseNet names the same layers below "backbone.", timm joins some names by "_" to extract
    # features: "blocks.0" and "blocks_0" are the same layer.
    found = {_plain(key.removeprefix("backbone.")): value for key, value in _checkpoint(weights, name).items()}
    chosen = {}
    for key, value in backbone.state_dict().items():
        given = found.get(_plain(key))
        if given is None and key.endswith("num_batches_tracked"):  # absent from checkpoints older than PyTorch 0.4.1
            given = value
        if given is None:
            raise UserError(f"{weights}: found no entry {key!r}, expected every layer of {name}")
        if given.shape != value.shape:
            raise UserError(
                f"{weights}: found shape {tuple(given.shape)} for {key!r}, expected {tuple(value.shape)};"
                f" is it of a {name}?"
            )
        chosen[key] = given
    backbone.load_state_dict(chosen)


def to_group_norm(model: nn.Module) -> None:
    """Put GroupNorm (Wu and He, "Group Normalization", ECCV 2018) in the place of every BatchNorm, in the model itself.

    It normalises each image by itself and keeps no running statistics. Groups are the paper's 32, fewer where channels
    are few. The learned scale and shift stay.

    Raises UserError where a layer does more than normalise.
    """
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.BatchNorm2d:
                channels = layer.num_features
                fitting = (n for n in GROUPS if channels % n == 0 and channels // n >= FEWEST_CHANNELS)
                replacement = nn.GroupNorm(next(fitting, 1), channels)
                replacement.load_state_dict(dict(layer.named_parameters()))
                setattr(parent, name, replacement)
            elif isinstance(layer, _BatchNorm):
                raise UserError(
                    f"model.norm=group: found a layer {type(layer).__name__} in {type(parent).__name__}, which no "
                    "GroupNorm can take the place of; expected a backbone of torchvision's"
                )


def _torchvision(name: str) -> tuple[nn.Module, int, int]:
    net: Any = torchvision.models.get_model(name, weights=None)
    channels = (net.classifier[0] if name.startswith("mobilenet") else net.fc).in_features
    return nn.Sequential(OrderedDict((layer, getattr(net, layer)) for layer in TORCHVISION[name])), channels, 32


class _LastFeatures(nn.Module):
    """The deepest map of a timm feature extractor, which returns a list."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, C, h, w)."""
        return self.net(images)[-1]


def _timm(name: str) -> tuple[nn.Module, int, int]:
    try:
        import timm
    except ImportError:
        raise UserError(
            f"model.backbone={name}: timm is not installed; expected it, by: pip install 'fedgh[timm]'"
        ) from None
    model, side = name.removeprefix(TIMM), 64
    known = timm.list_models()
    if model not in known:  # also what timm would fetch over the network, such as "hf-hub:..."
        near = difflib.get_close_matches(model, known, n=3)
        raise UserError(
            f"model.backbone: found {name!r}, expected a model of timm {timm.__version__}"
            + (f"; did you mean {' or '.join(TIMM + other for other in near)}?" if near else "")
        )
    try:
        backbone = _LastFeatures(timm.create_model(model, pretrained=False, features_only=True, out_indices=(-1,)))
        with torch.inference_mode():
            _, channels, height, width = backbone.eval()(torch.zeros(1, 3, side, side)).shape
    except Exception as error:  # each model has its own way to refuse
        raise UserError(
            f"model.backbone={name}: gives no feature maps of inputs of any size ({first_line(error).rstrip('.')});"
            " expected a convolutional model or alike"
        ) from None
    stride = side // height
    if height != width or side % height or not math.log2(stride).is_integer() or not 4 <= stride <= 32:
        raise UserError(
            f"model.backbone={name}: found features of {height} x {width} for an input of {side} x {side},"
            " expected 1/4, 1/8, 1/16 or 1/32 of it"
        )
    return backbone.train(), channels, stride


def _plain(key: str) -> str:
    """A layer's name whatever joins its parts, and whatever wraps it."""
    return key.removeprefix("net.").removeprefix("model.").replace(".", "_")


def _checkpoint(weights: str, name: str) -> Mapping[str, Tensor]:
    """The state dict that ``weights`` names: a local file if there is one, else a torchvision weight enum."""
    path = Path(weights).expanduser()
    if path.is_file():
        try:
            if path.suffix == ".safetensors":
                return load_file(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # both raise whatever their readers met
            reader = "safetensors" if path.suffix == ".safetensors" else "torch.load"
            raise UserError(
                f"{path}: found a file that {reader} cannot read as plain tensors"
                f" ({type(error).__name__}), expected a PyTorch checkpoint"
            ) from error
        if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
            state = state["state_dict"]
        if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
            raise UserError(f"{path}: found {type(state).__name__}, expected a state dict of tensors")
        return state
    if name.startswith(TIMM):
        raise UserError(f"model.weights: found {weights!r}, expected a checkpoint file of {name}; none is downloaded")
    enum = torchvision.models.get_model_weights(name)
    known = [f"{enum.__name__}.{member}" for member in enum.__members__]
    if weights not in known:
        raise UserError(f"model.weights: found {weights!r}, expected a checkpoint file or one of {', '.join(known)}")
    try:
        return enum[weights.partition(".")[2]].get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # network, proxy, disk, hash: each has its own exception
        reason = " ".join(str(error).split())
        raise UserError(
            f"model.weights: {weights} could not be fetched ({reason}), expected network access"
            " or the path of a local checkpoint"
        ) from error
