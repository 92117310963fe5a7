"""What every vision task shares: images, backbones, objectives, sharing, schedules. Plain PyTorch and OpenCV."""
