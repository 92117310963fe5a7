"""Pose estimation in plain PyTorch and OpenCV; knows nothing of federations."""

import os

# A PNG of 50 kB can state 400 million pixels, for which OpenCV's own limit would let it take 2.4 GB. It reads this when
# it is imported, so before any module here.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "100000000")
