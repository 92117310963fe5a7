"""Keypoints of people in any images and videos, drawn and written; the network as ONNX."""
