"""What `benchmarks.models` counts, on a network small enough to count by hand."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import models


def test_costs_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    convolution, deconvolution = nn.Conv2d(3, 4, 3, 2, 1), nn.ConvTranspose2d(4, 2, 4, 2, 1, bias=False)
    parts: Any = OrderedDict(backbone=nn.Sequential(convolution, nn.BatchNorm2d(4)), head=deconvolution)
    monkeypatch.setattr(models, "build", lambda choice: nn.Sequential(parts))
    threads = torch.get_num_threads()
    [cost] = models.measure(("tiny",), (8, 16), repeats=2)
    assert torch.get_num_threads() == threads
    # 3 x 3 weights for each of 3 channels to 4, a bias each; twice 4 of BatchNorm; 4 x 4 weights from 4 channels to 2.
    assert cost.parameters == 4 * (3 * 9 + 1) + 8 + 128
    assert cost.head_parameters == 128
    # The convolution at its 4 x 8 output pixels, the transposed one at its 4 x 8 input pixels.
    assert cost.multiply_adds == 32 * (4 * 27) + 32 * 128
    # Each array has numpy's header of 128 bytes; BatchNorm also sends mean, variance, and a count of 8 bytes.
    arrays = 1 + 1 + 5 + 1
    model = 4 * (cost.parameters + 8) + 8 + 128 * arrays
    assert (cost.bytes_down, cost.bytes_up) == (2 * model, model)
    assert all(0 < seconds < math.inf for seconds in (cost.torch_seconds, cost.onnx_seconds))
    assert models.markdown([cost]).splitlines()[2].startswith("| `tiny` | 0.00 | 0.00 | 0.00 | ")
