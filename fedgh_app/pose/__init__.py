"""Pose estimation in plain PyTorch and OpenCV; knows nothing of federations."""
