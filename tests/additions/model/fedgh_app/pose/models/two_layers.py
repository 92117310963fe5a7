"""Two convolutions: the least that a pose network is."""

from torch import Tensor, nn


class TwoLayers(nn.Module):
    """Images (B, 3, H, W) to one map for each keypoint, (B, J, H/4, W/4)."""

    def __init__(self, num_keypoints: int, width: int = 8) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 4, stride=4), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(width, num_keypoints, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))
