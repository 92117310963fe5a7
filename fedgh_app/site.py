"""What one client, or the server, has at hand: the crops it may see, the model, the loss.

Everything here is opened once per process and kept, because Flower calls a ClientApp anew for every message.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

from fedgh_app import partition
from fedgh_app.config import compose_config, fedgh_home, split_overrides
from fedgh_app.instantiation import instantiate
from fedgh_app.pose.cache import CropCache, open_cache
from fedgh_app.pose.errors import UserError
from fedgh_app.pose.records import DatasetSpec, load_spec
from fedgh_app.storage import load_model
from strategies.randomness import derive_seed


@dataclass(frozen=True)
class Site:
    """The data of one client.

    Attributes:
        name: the client's name, which all server state goes by.
        label: what it holds, for people (an attribute's value).
        cache: crops of the data set that it can see.
        train: its training crops, (n,) indices into the cache.
        test: its test crops, (m,) indices.
    """

    name: str
    label: str
    cache: CropCache
    train: np.ndarray
    test: np.ndarray


@functools.lru_cache(maxsize=4)
def config_of(overrides: str) -> DictConfig:
    """The composed config of this process, from the run config's one key."""
    return compose_config(split_overrides(overrides))


def limit_threads(count: int) -> None:
    """Let torch and OpenCV use ``count`` threads; more of them than cores fight and run many times slower."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
    cv2.setNumThreads(count)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_of(config: DictConfig) -> torch.device:
    """A GPU where the runtime grants a share of one, else the CPU."""
    wanted = config.runtime.client_gpus > 0 and torch.cuda.is_available()
    return torch.device("cuda" if wanted else "cpu")


def open_data(config: DictConfig, root: str | Path | None = None) -> CropCache:
    """The crop cache of the configured data set, built where it does not exist yet.

    Args:
        config: the run's config.
        root: the data root that a node insists on, which wins over ``dataset.root``.
    """
    return _open_data(
        config.dataset.spec,
        Path(root or config.dataset.root).expanduser().resolve(),
        tuple(config.dataset.input_size),
        config.dataset.on_bad,
        fedgh_home() / "cache" / "crops",
    )


@functools.lru_cache(maxsize=8)
def _open_data(
    name: str, root: Path, input_size: tuple[int, int], on_bad: Literal["raise", "skip"], directory: Path
) -> CropCache:
    spec = load_spec(name)
    if not root.is_dir():
        raise UserError(f"dataset.root={root}: no such directory; expected data set {name}: {spec.obtain}")
    return open_cache(spec, root, input_size=input_size, on_bad=on_bad, directory=directory)


def open_site(config: DictConfig, node_config: Mapping[str, Any]) -> Site:
    """The data of the client that ``node_config`` describes.

    A node's ``data-root`` always wins over the config, so that a site decides what is read there. With
    ``partition=site`` a node holds all that lies under its root; otherwise ``partition-id`` picks its part.
    """
    part = node_config.get("partition-id")
    name = str(node_config.get("name", "0" if part is None else part))
    cache = open_data(config, node_config.get("data-root"))
    if config.partition._target_ is None:
        site = Site(name, name, cache, cache.indices("train"), cache.indices("test"))
    else:
        if part is None or "num-partitions" not in node_config:
            raise UserError(
                f"client {name}: its node config has no partition-id and num-partitions; expected both, "
                "or partition=site for nodes that hold their own data"
            )
        split = partition.stored(config, cache, int(node_config["num-partitions"]))
        index = int(part)
        site = Site(
            name,
            split.labels[index],
            cache,
            np.asarray(split.train[index], dtype=np.int64),
            np.asarray(split.test[index], dtype=np.int64),
        )
    if len(site.train) == 0:
        raise UserError(f"client {name}: no training image under {cache.spec.name}; expected at least 1")
    return site


def build_model(config: DictConfig, spec: DatasetSpec) -> nn.Module:
    """The configured model for the keypoints of ``spec``, with initial weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "model"))
        model: nn.Module = instantiate(config.model, "model", num_keypoints=len(spec.keypoints))
    return model


def initial_state(config: DictConfig, spec: DatasetSpec) -> dict[str, torch.Tensor]:
    """The state dict that round 1 starts from: fresh, or the model that ``init`` names.

    Raises UserError where the stored model has other keys or shapes.
    """
    state = build_model(config, spec).state_dict()
    if config.init is None:
        return dict(state)
    file = Path(config.init)
    stored, _ = load_model(file)
    for key, tensor in state.items():
        if key not in stored or stored[key].shape != tensor.shape:
            found = tuple(stored[key].shape) if key in stored else "nothing"
            raise UserError(f"init={file}: {key} is {found}; expected shape {tuple(tensor.shape)}, as in model=…")
    return {key: stored[key] for key in state}
