"""Images of coloured dots, and a network that finds them: what it is told of a crop it must find in the photograph."""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from fedgh_app.pose.data.batches import MEAN, STD
from fedgh_app.pose.data.records import load_spec
from fedgh_app.pose.models.decoding import peak_height, quarter
from fedgh_app.pose.prediction.prediction import Predictor

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)  # shoulder, elbow, wrist; RGB


class Dots(nn.Module):
    """Map j is high where the image has colour j; one pixel of the map is one of the input."""

    def __init__(self, blur: int = 3) -> None:
        super().__init__()
        self.blur = blur

    def forward(self, images: Tensor) -> Tensor:
        rgb = images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
        colours = torch.from_numpy(COLOURS).float() / 255
        distance = (rgb[:, None] - colours[:, :, None, None]).square().sum(2)
        maps = torch.exp(-8 * distance)
        for _ in range(2):  # once would leave a plateau, whose first pixel is not its middle
            maps = nn.functional.avg_pool2d(maps, self.blur, stride=1, padding=self.blur // 2)
        return maps


def dotted(points: np.ndarray, width: int, height: int, radius: int = 8) -> np.ndarray:
    """A grey RGB image with one arm of dots."""
    image = np.full((height, width, 3), 128, np.uint8)
    for (x, y), colour in zip(points, COLOURS, strict=True):
        cv2.circle(image, (int(x), int(y)), radius, tuple(map(int, colour)), -1)
    return image


def write(path: Path, image: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), image[..., ::-1])
    return path


def predictor(batch_size: int = 32, size: tuple[int, int] = (96, 64)) -> Predictor:
    return Predictor(Dots(), load_spec("arm"), size, quarter, peak_height, torch.device("cpu"), batch_size)
