"""A light integral model through a federation: trained, distilled on the server, and built again from its file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from flwr.app import ArrayRecord, RecordDict
from omegaconf import OmegaConf
from recording import run

from fedgh_app.config.instantiation import instantiate
from fedgh_app.grids.screening import array_bytes
from fedgh_app.pose.models.decoding import Integral
from fedgh_app.pose.task import TASK
from fedgh_app.runs import storage

INTEGRAL = [
    *("model=shufflenet_v2", "model.backbone=shufflenet_v2_x0_5"),
    *("model.head=integral", "model.beta=2.0", "model.debiased=false", "loss=integral"),
]
DISTILS = ["distillation=server", "distillation.every=1", "distillation.images=8", "strategy=fedcdw"]


def test_an_integral_model_is_trained_distilled_and_built_again(tiny: list[str], tmp_path: Path) -> None:
    run([*tiny, *INTEGRAL, *DISTILS, "partition=iid", "rounds=1"], tmp_path / "run", count=2)
    before, after = storage.read_lines(tmp_path / "run/history.jsonl")
    assert math.isfinite(after["train"]["loss"])
    assert after["evaluate"]["central"]["loss"] != before["evaluate"]["central"]["loss"]
    assert 0 < after["distillation"]["global"]["loss"] < math.inf

    # Two clients: each is sent a model to train and one to evaluate, and sends one back.
    model_bytes = array_bytes(RecordDict({"arrays": ArrayRecord(storage.load_model(tmp_path / "run")[0])}))
    assert after["bytes"] == {"down": 4 * model_bytes, "up": 2 * model_bytes}

    state, metadata = storage.load_model(tmp_path / "run")
    node = OmegaConf.create(json.loads(metadata["model"]))
    model = instantiate(node, "model", TASK.builds["model"])
    model.load_state_dict(state)
    assert model.integral == Integral(debiased=False, beta=2.0)
    points, scores = model.eval().integral(model(torch.zeros(1, 3, 64, 64)), (64, 64))
    assert points.shape == (1, 3, 2) and scores.shape == (1, 3)
