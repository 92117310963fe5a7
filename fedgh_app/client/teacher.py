"""The teacher of `teacher=hhd`: the trained model of a finished run, beside the student of every client."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig

from fedgh_app.config.instantiation import instantiate
from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import DatasetSpec
from fedgh_app.pose.models.decoding import Integral
from fedgh_app.pose.models.hhd import HHD, Guide
from fedgh_app.runs.opening import load_run
from fedgh_app.vision.training import place


def distillation_of(config: DictConfig) -> HHD | None:
    """How students are guided; None without a teacher. Raises UserError where it refuses its arguments."""
    if config.teacher._target_ is None:
        return None
    made: HHD = instantiate(DictConfig({k: v for k, v in config.teacher.items() if k != "run"}), "teacher")
    return made


def guide_of(config: DictConfig, spec: DatasetSpec, device: torch.device | str = "cpu") -> Guide | None:
    """The configured teacher, loaded onto ``device``, for students that find the keypoints of ``spec``.

    Args:
        config: the run's config.
        spec: the data set of the client.
        device: where it trains.

    Returns:
        None where there is no teacher.

    Raises:
        UserError: no such run, one without heatmaps, of other keypoints, or trained on images of another shape.
    """
    distillation = distillation_of(config)
    if distillation is None:
        return None
    path = config.teacher.run
    key = f"teacher.run={path}"
    if path is None:
        raise UserError("teacher.run=null: expected a path, or a node config that says teacher=PATH")
    run = load_run(Path(path).expanduser())
    if run.spec.keypoints != spec.keypoints:
        raise UserError(
            f"{key}: finds {', '.join(run.spec.keypoints)}; expected a teacher of the keypoints of {spec.name}: "
            f"{', '.join(spec.keypoints)}"
        )
    if getattr(run.model, "integral", None) is not None:
        raise UserError(f"{key}: its maps are implicit (model.head=integral); expected a run with model.head=heatmap")
    height, width = run.config.dataset.input_size
    student_height, student_width = config.dataset.input_size
    if height * student_width != width * student_height:
        raise UserError(
            f"{key}: was trained on images of {height} x {width}; expected the shape of "
            f"dataset.input_size={list(config.dataset.input_size)}, larger or smaller"
        )
    place(run.model, torch.device(device))
    return Guide(
        run.model.requires_grad_(False),
        distillation,
        Integral(config.model.debiased, config.model.beta),
        logits=instantiate(run.config.loss, "loss").logits,
        input_size=(height, width),
    )
