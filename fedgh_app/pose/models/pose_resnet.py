"""PoseResNet: a ResNet, three transposed convolutions, one heatmap per keypoint."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from fedgh_app.pose.errors import UserError

DEPTHS = (18, 34, 50, 101, 152)


class PoseResNet(nn.Module):
    """Simple Baselines for Human Pose Estimation (Xiao, Wu and Wei, ECCV 2018, section 2 and figure 1).

    A torchvision ResNet without its classifier (``backbone``), then three 4x4 transposed convolutions of
    stride 2 with BatchNorm and ReLU and a 1x1 convolution to one heatmap per keypoint (``head``).

    Parameters
    ----------
    depth
        Of the ResNet: 18, 34, 50, 101 or 152.
    num_keypoints
        J, the number of heatmaps.
    head_width
        Channels of each transposed convolution; 256 in the paper.
    weights
        Where the backbone starts: nothing (random, the default), the name of a torchvision weight enum such
        as ``ResNet50_Weights.IMAGENET1K_V2`` (torchvision downloads it unless it is cached), or the path of a
        local checkpoint with torchvision's names of layers. The head always starts at random.
    """

    def __init__(self, depth: int, num_keypoints: int, head_width: int = 256, weights: str | None = None) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise UserError(f"model.depth: found {depth!r}, expected one of {', '.join(map(str, DEPTHS))}")
        for name, value in (("num_keypoints", num_keypoints), ("head_width", head_width)):
            if not isinstance(value, int) or value < 1:
                raise UserError(f"model.{name}: found {value!r}, expected a whole number of at least 1")
        self.backbone, channels = _backbone(depth)
        self.head = _head(channels, head_width, num_keypoints)
        if weights is not None:
            _load(self.backbone, _checkpoint(str(weights), depth), source=str(weights))

    def forward(self, images: Tensor) -> Tensor:
        """Heatmaps (B, J, H/4, W/4) of normalised images (B, 3, H, W); H and W are multiples of 32."""
        return self.head(self.backbone(images))


def _backbone(depth: int) -> tuple[nn.Sequential, int]:
    """Everything of a torchvision ResNet before its pooling, and its number of output channels."""
    resnet = torchvision.models.get_model(f"resnet{depth}", weights=None)
    names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    return nn.Sequential(OrderedDict((name, getattr(resnet, name)) for name in names)), resnet.fc.in_features


def _head(channels: int, width: int, num_keypoints: int) -> nn.Sequential:
    """Three times twice the resolution, then one map per keypoint; initialised as the authors' code does."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in (1, 2, 3):
        # No bias: BatchNorm follows and would take it out again.
        deconv = nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1, bias=False)
        nn.init.normal_(deconv.weight, std=0.001)
        layers[f"deconv{i}"] = deconv
        layers[f"bn{i}"] = nn.BatchNorm2d(width)
        layers[f"relu{i}"] = nn.ReLU(inplace=True)
        channels = width
    final = nn.Conv2d(channels, num_keypoints, 1)
    nn.init.normal_(final.weight, std=0.001)
    nn.init.zeros_(final.bias)  # type: ignore[arg-type]
    layers["final"] = final
    return nn.Sequential(layers)


def _checkpoint(weights: str, depth: int) -> Mapping[str, Tensor]:
    """The state dict that ``weights`` names: a local file if there is one, else a torchvision weight enum."""
    path = Path(weights).expanduser()
    if path.is_file():
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises whatever its unpickler or zip reader met
            raise UserError(
                f"{path}: found a file that torch.load cannot read as plain tensors"
                f" ({type(error).__name__}), expected a PyTorch checkpoint"
            ) from error
        if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
            state = state["state_dict"]
        if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
            raise UserError(f"{path}: found {type(state).__name__}, expected a state dict of tensors")
        return state
    enum = torchvision.models.get_model_weights(f"resnet{depth}")
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


def _load(backbone: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy the backbone's entries of ``state``; what else it holds (a classifier, a head) is unused."""
    own = backbone.state_dict()
    # A checkpoint of a whole PoseResNet names the same layers below "backbone.".
    found = {name.removeprefix("backbone."): value for name, value in state.items()}
    for name, value in own.items():
        if name not in found:
            if name.endswith("num_batches_tracked"):  # absent from checkpoints older than PyTorch 0.4.1
                found[name] = value
                continue
            raise UserError(f"{source}: found no entry {name!r}, expected every layer of the backbone")
        if found[name].shape != value.shape:
            raise UserError(
                f"{source}: found shape {tuple(found[name].shape)} for {name!r}, expected"
                f" {tuple(value.shape)}; is it a ResNet of the same depth?"
            )
    backbone.load_state_dict({name: found[name] for name in own})
