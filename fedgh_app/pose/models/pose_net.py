"""PoseNet: a backbone, transposed convolutions up to a quarter of the input, one map per keypoint."""

from collections import OrderedDict
from typing import Literal, get_args

from torch import Tensor, nn

from fedgh_app.errors import UserError
from fedgh_app.pose.models.decoding import Integral
from fedgh_app.vision.backbones import build_backbone, load_weights, to_group_norm

Head = Literal["heatmap", "integral"]
Norm = Literal["batch", "group"]

# Input pixels to a pixel of the maps, as in the paper.
MAP_STRIDE = 4


class PoseNet(nn.Module):
    """Simple Baselines for Human Pose Estimation (Xiao, Wu and Wei, ECCV 2018, section 2 and figure 1), any backbone.

    An image classifier without its pooling and classifier (``backbone``), then 4x4 transposed convolutions of stride 2
    with BatchNorm and ReLU, as many as lead to a quarter of the input (three where the backbone ends at 1/32), and a
    1x1 convolution to one map per keypoint (``head``). The paper's own network is a ResNet with 256 channels.

    Args:
        backbone: ``resnet18`` to ``152``, ``mobilenet_v3_small``, ``_large``, ``shufflenet_v2_x0_5`` to ``_x2_0``, or
            ``timm:NAME``; see `backbones`.
        num_keypoints: J, the number of maps.
        head: what the maps are. ``heatmap``: explicit ones, drawn towards a Gaussian, whose highest pixel is the
            keypoint. ``integral``: logits, implicit heatmaps, whose softmax is the distribution of which the keypoint
            is the expectation (Sun et al., ECCV 2018). The layers are the same, the losses are not.
        debiased, beta: of the integral head: see `decoding.Integral`.
        head_width: channels of each transposed convolution.
        separable: whether each transposed convolution is split in two, a 1x1 convolution and a transposed one of each
            channel for itself (Howard et al., MobileNets, 2017). The whole head is then a fraction of a light backbone;
            in full, its first layer alone would be larger than that.
        norm: ``batch``: BatchNorm where the backbone has it, and in the head. ``group``: GroupNorm in its place; see
            `backbones.to_group_norm`.
        weights: where the backbone starts: nothing (random, the default), the name of a torchvision weight enum such as
            ``ResNet50_Weights.IMAGENET1K_V2`` (torchvision downloads it unless it is cached), or the path of a local
            checkpoint with the backbone's own names of layers. The head always starts at random.
    """

    def __init__(
        self,
        backbone: str,
        num_keypoints: int,
        head: Head = "heatmap",
        debiased: bool = True,
        beta: float = 1.0,
        head_width: int = 256,
        separable: bool = False,
        norm: Norm = "batch",
        weights: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("num_keypoints", num_keypoints), ("head_width", head_width)):
            if not isinstance(value, int) or value < 1:
                raise UserError(f"model.{name}: found {value!r}, expected a whole number of at least 1")
        if head not in get_args(Head):
            raise UserError(f"model.head: found {head!r}, expected {' or '.join(get_args(Head))}")
        if norm not in get_args(Norm):
            raise UserError(f"model.norm: found {norm!r}, expected {' or '.join(get_args(Norm))}")
        # How the maps of this model are read, where that is part of what it was trained for.
        self.integral = Integral(debiased, beta) if head == "integral" else None
        self.backbone, channels, stride = build_backbone(backbone)
        self.head = _head(channels, stride, head_width, num_keypoints, separable)
        if norm == "group":
            to_group_norm(self)
        if weights is not None:
            load_weights(self.backbone, backbone, str(weights))

    def forward(self, images: Tensor) -> Tensor:
        """Maps (B, J, H/4, W/4) of normalised images (B, 3, H, W); H and W are multiples of 32."""
        return self.head(self.backbone(images))


def _head(channels: int, stride: int, width: int, num_keypoints: int, separable: bool) -> nn.Sequential:
    """From the backbone's ``channels`` at 1/``stride`` of the input to a map per keypoint at 1/4."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(1, (stride // MAP_STRIDE).bit_length()):
        # No bias: BatchNorm follows and would take it out again.
        if separable:
            # The 1x1 convolution comes first, where there are four times fewer pixels.
            layers[f"pointwise{i}"] = nn.Conv2d(channels, width, 1, bias=False)
            layers[f"pointwise_bn{i}"] = nn.BatchNorm2d(width)
            layers[f"pointwise_relu{i}"] = nn.ReLU(inplace=True)
            layers[f"deconv{i}"] = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, groups=width, bias=False)
        else:
            deconv = nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1, bias=False)
            nn.init.normal_(deconv.weight, std=0.001)  # as in the authors' code
            layers[f"deconv{i}"] = deconv
        layers[f"bn{i}"] = nn.BatchNorm2d(width)
        layers[f"relu{i}"] = nn.ReLU(inplace=True)
        channels = width
    final = nn.Conv2d(channels, num_keypoints, 1)
    nn.init.normal_(final.weight, std=0.001)
    nn.init.zeros_(final.bias)  # type: ignore[arg-type]  # it has one
    layers["final"] = final
    return nn.Sequential(layers)
