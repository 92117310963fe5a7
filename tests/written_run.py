"""A run directory as far as it is read to open the run again."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from fedgh_app.assembly.client import ClientAssembly
from fedgh_app.config.compose import compose_config
from fedgh_app.pose.data.records import load_spec
from fedgh_app.runs import storage


@functools.cache
def composed(*overrides: str) -> DictConfig:
    """A config; composing takes longer than all else here."""
    return compose_config(overrides)


def write_run(
    directory: Path, overrides: list[str], file: str = "model.safetensors", *, root: Path | None = None
) -> dict[str, torch.Tensor]:
    """A run directory as far as `load_run` reads it, of data under ``root``; the weights in it."""
    config = copy.deepcopy(composed(*overrides))
    if root is not None:
        config.dataset.root = str(root)
    directory.mkdir(exist_ok=True)
    OmegaConf.save(config, directory / "config.yaml")
    config.seed = 7  # other weights than those a fresh model starts from
    state = ClientAssembly(config).build_model(load_spec(config.dataset.spec)).state_dict()
    (directory / file).parent.mkdir(exist_ok=True, parents=True)
    storage.save_model(directory / file, state, model=config.model, dataset=str(config.dataset.spec), rounds=3)
    return state
