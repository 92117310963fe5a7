"""Networks that turn an image of one person into one map per keypoint."""

from fedgh_app.pose.models.pose_net import PoseNet

__all__ = ["PoseNet"]
