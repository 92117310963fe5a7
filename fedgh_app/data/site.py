"""What one client, or the server, has at hand: the crops it may see, the model, the loss.

Everything here is opened once per process and kept, because Flower calls a ClientApp anew for every message.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from flwr.common.typing import Scalar
from omegaconf import DictConfig
from torch import nn

from fedgh_app.data import partition
from fedgh_app.config.compose import compose_config, fedgh_home, split_overrides
from fedgh_app.config.instantiation import instantiate
from fedgh_app.data.partition import Dealt, Partition
from fedgh_app.pose.data.cache import CropCache, open_cache
from fedgh_app.vision.cores import usable_cores
from fedgh_app.pose.models.decoding import Decode, decoder
from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import DatasetSpec, load_spec
from fedgh_app.runs.storage import load_model
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
        speed: how fast it declares to train; 1 for a client like the others.
    """

    name: str
    label: str
    cache: CropCache
    train: np.ndarray
    test: np.ndarray
    speed: float = 1.0

    def properties(self) -> dict[str, Scalar]:
        """What the server is told at the start: name, label, sizes, what it predicts, and speed."""
        return {
            "name": self.name,
            "label": self.label,
            "num-examples": len(self.train),
            "num-test": len(self.test),
            "predicts": ",".join(self.cache.spec.predicts),
            "speed": self.speed,
        }


@functools.lru_cache(maxsize=4)
def config_of(overrides: str) -> DictConfig:
    """The composed config of this process, from the run config's one key."""
    return compose_config(split_overrides(overrides))


def limit_threads(count: int | None) -> None:
    """Let torch and OpenCV use ``count`` threads (None: one a core); more of them than cores fight and run many times
    slower.
    """
    count = count or usable_cores()
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
    cv2.setNumThreads(count)


@contextmanager
def server_threads(config: DictConfig) -> Iterator[None]:
    """Let torch use as many threads inside the block as the server may while its clients rest.

    Asynchronous clients never rest: beside them it has no more threads than one of them.
    """
    before = torch.get_num_threads()
    resting = not str(config.mode._target_).endswith(".Async")
    torch.set_num_threads(
        int(config.runtime.get("server_cpus" if resting else "client_cpus", config.runtime.client_cpus) or before)
    )
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_of(config: DictConfig) -> torch.device:
    """A GPU where the runtime grants a share of one, else the CPU."""
    wanted = config.runtime.client_gpus > 0 and torch.cuda.is_available()
    return torch.device("cuda" if wanted else "cpu")


def members(config: DictConfig) -> dict[str, DictConfig]:
    """The data sets of the federation by name, each as the config of a federation of that data set alone.

    Usually there is one. Several (``dataset=arm_lspet``) are parted one by one, each by its own natural attribute; a
    natural partition gives one client all of a data set that has none.

    Raises UserError where a data set cannot be parted as the config says.
    """
    if "members" not in config.dataset:
        return {str(config.dataset.spec): config}
    return {str(name): _alone(config, str(name)) for name in config.dataset.members}


def _alone(config: DictConfig, member: str) -> DictConfig:
    alone = copy.deepcopy(config)
    alone.dataset = config.dataset.members[member]
    alone.num_clients = None
    by = config.partition.get("partition_by")
    if by is None:
        return alone
    own = alone.dataset.natural_attribute
    if by != config.dataset.natural_attribute:
        raise UserError(
            f"partition.partition_by={by}: each data set of {config.dataset.spec} is parted by its own attribute; "
            f"expected dataset.members.{member}.natural_attribute={by}"
        )
    if own is not None:
        alone.partition.partition_by = own
    elif partition.is_natural(config):
        alone.partition = {"_target_": "flwr_datasets.partitioner.IidPartitioner", "num_partitions": 1}
        alone.num_clients = 1
    else:
        raise UserError(
            f"dataset.members.{member}.natural_attribute=null: this partition needs an attribute to part {member} by; "
            "expected partition=natural, partition=iid or partition=size_skewed"
        )
    return alone


def clients_of(config: DictConfig, num_clients: int | None = None) -> dict[str, int]:
    """How many clients hold each data set of the federation; clients are numbered through in this order.

    Args:
        config: the run's config.
        num_clients: how many there are in all; None for what the config says, else what the partition itself fixes,
            else the runtime's default, shared out evenly over the data sets.

    Raises:
        UserError: another number than the partition makes, or fewer than there are data sets.
    """
    alone = members(config)
    caches = {name: open_data(one) for name, one in alone.items()}
    total = num_clients or config.num_clients
    if "members" not in config.dataset:
        return {name: total or partition.number_of_clients(one, caches[name]) for name, one in alone.items()}
    if partition.is_natural(config):
        counts = {name: partition.number_of_clients(one, caches[name]) for name, one in alone.items()}
        made = sum(counts.values())
        if total not in (None, made):
            raise UserError(f"num_clients={total}: this partition makes {made} clients; expected num_clients={made}")
        return counts
    total = int(total or config.runtime.get("num_supernodes", 4))
    if total < len(alone):
        raise UserError(f"num_clients={total}: expected at least {len(alone)}, one for each of {', '.join(alone)}")
    each, rest = divmod(total, len(alone))
    return {name: each + (place < rest) for place, name in enumerate(alone)}


def deal(config: DictConfig, num_clients: int) -> dict[str, Dealt]:
    """Who holds what of each data set of the federation; computed, and kept for the clients, where it is new.

    Raises UserError where a partition cannot be made.
    """
    alone, dealt = members(config), {}
    for member, count in clients_of(config, num_clients).items():
        cache = open_data(alone[member])
        parts = partition.partition(alone[member], cache, count)
        dealt[member] = Dealt(alone[member], cache, _labelled(config, member, parts))
    return dealt


def specs(config: DictConfig) -> dict[str, DatasetSpec]:
    """What each data set of the federation is, by name."""
    return {name: load_spec(one.dataset.spec) for name, one in members(config).items()}


def headline(config: DictConfig) -> str:
    """Name of the federation's headline metric, such as PCK@0.2; of data sets that differ in it, each one's."""
    return ", ".join(dict.fromkeys(spec.headline for spec in specs(config).values()))


def open_data(config: DictConfig) -> CropCache:
    """The crop cache of the configured data set, built where it does not exist yet.

    Args:
        config: the run's config; of a federation of several data sets, one of `members`.

    Raises:
        UserError: the data are not there, or the config names several data sets.
    """
    if "members" in config.dataset:
        names = ", ".join(map(str, config.dataset.members))
        raise UserError(
            f"dataset={config.dataset.spec}: holds no images itself; expected one of its data sets: {names}"
        )
    return _open_data(
        config.dataset.spec,
        Path(config.dataset.root).expanduser().resolve(),
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

    With ``partition=site`` a node holds all that lies under its ``data-root``, and where the federation has several
    data sets it says with ``dataset`` which that is; otherwise ``partition-id`` picks its part. ``speed`` says how fast
    it is. Where the images lie the config knows already (`fedgh_app.client.boundary`).

    Raises UserError where the node config does not fit the config, or no training image is there.
    """
    part = node_config.get("partition-id")
    name = str(node_config.get("name", "0" if part is None else part))
    speed = _speed(config, node_config, name)
    root = node_config.get("data-root")
    if root is not None and not Path(str(root)).expanduser().is_dir():
        raise UserError(f"data-root={root}: no such directory; expected the one that holds the images of client {name}")
    if config.partition._target_ is None:
        held = members(config)[_member(config, node_config, name)]
        if part is None and "data-root" not in node_config:
            raise UserError(f"client {name}: its node config has no data-root; expected data-root=PATH")
        cache = open_data(held)
        site = Site(name, name, cache, cache.indices("train"), cache.indices("test"), speed)
    else:
        if part is None or "num-partitions" not in node_config:
            raise UserError(
                f"client {name}: its node config has no partition-id and num-partitions; expected both, "
                "or partition=site for nodes that hold their own data"
            )
        member, index, count = _place(config, int(part), int(node_config["num-partitions"]))
        if node_config.get("dataset", member) != member:
            raise UserError(
                f"client {name}: its node config says dataset={node_config['dataset']}, but part {part} of the "
                f"partition is of {member}; expected partition=site for nodes that hold their own data"
            )
        alone = members(config)[member]
        cache = open_data(alone)
        split = _labelled(config, member, partition.stored(alone, cache, count))
        site = Site(
            name,
            split.labels[index],
            cache,
            np.asarray(split.train[index], dtype=np.int64),
            np.asarray(split.test[index], dtype=np.int64),
            speed,
        )
    if len(site.train) == 0:
        raise UserError(f"client {name}: no training image under {site.cache.spec.name}; expected at least 1")
    return site


def _speed(config: DictConfig, node_config: Mapping[str, Any], name: str) -> float:
    """What the node says of itself, else what the config says of it."""
    speed = node_config.get("speed", (config.runtime.get("speeds") or {}).get(name, 1.0))
    if isinstance(speed, bool) or not isinstance(speed, int | float) or not 0 < speed < math.inf:
        raise UserError(f"client {name}: speed={speed}; expected a number above 0, 1 for a client like the others")
    return float(speed)


def _member(config: DictConfig, node_config: Mapping[str, Any], name: str) -> str:
    """Which of the federation's data sets a node holds that brings its own."""
    known = list(members(config))
    said = node_config.get("dataset", known[0] if len(known) == 1 else None)
    if said not in known:
        raise UserError(f"client {name}: its node config says dataset={said}; expected one of {', '.join(known)}")
    return str(said)


def _place(config: DictConfig, part: int, num_clients: int) -> tuple[str, int, int]:
    """Of client number ``part``: its data set, its number among the clients of that, and how many those are."""
    if "members" not in config.dataset:
        return str(config.dataset.spec), part, num_clients
    counts = clients_of(config, num_clients)
    return [(member, index, count) for member, count in counts.items() for index in range(count)][part]


def _labelled(config: DictConfig, member: str, parts: Partition) -> Partition:
    return partition.labelled(parts, member) if "members" in config.dataset else parts


def build_model(config: DictConfig, spec: DatasetSpec) -> nn.Module:
    """The configured model for the keypoints of ``spec``, with initial weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "model"))
        model: nn.Module = instantiate(config.model, "model", num_keypoints=len(spec.keypoints))
    return model


def decoder_of(config: DictConfig, model: nn.Module) -> Decode:
    """How the maps of the configured model are read (``evaluate.decoding``)."""
    return decoder(model, config.evaluate.decoding, instantiate(config.loss, "loss"))


def flip_permutation(config: DictConfig, spec: DatasetSpec) -> np.ndarray | None:
    """The order of the keypoints in a mirrored image where there is a flip test (``evaluate.flip_test``), else None."""
    return spec.flip_permutation if config.evaluate.flip_test else None


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
