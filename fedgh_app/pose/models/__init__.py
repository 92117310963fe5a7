"""Networks that turn an image of one person into one heatmap per keypoint."""

from fedgh_app.pose.models.pose_resnet import PoseResNet

__all__ = ["PoseResNet"]
