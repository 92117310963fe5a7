"""The data of one client."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgh_app.data.federated import FederatedData
from fedgh_app.errors import UserError
from fedgh_app.resources import Values
from fedgh_app.task import Examples


@dataclass(frozen=True)
class Site:
    """The data of one client."""

    name: str  # the client's name, which all server state goes by
    label: str  # what it holds, for people (an attribute's value)
    dataset: str  # name of its data set
    examples: Examples  # the data set that it can see
    train: np.ndarray  # its training examples, (n,) positions in the data set
    test: np.ndarray  # its test examples, (m,)
    speed: float = 1.0  # how fast it declares to train; 1 for a client like the others

    def properties(self) -> dict[str, int | float | str]:
        """What the server is told at the start: name, label, sizes, what its head predicts, and speed."""
        return {
            "name": self.name,
            "label": self.label,
            "num-examples": len(self.train),
            "num-test": len(self.test),
            "predicts": ",".join(self.examples.spec.predicts),
            "speed": self.speed,
        }


def open_site(data: FederatedData, node_config: Values) -> Site:
    """The data of the client that ``node_config`` describes; UserError where it does not fit, or holds no images.

    With ``partition=site`` a node holds all under its ``data-root``, of several data sets the one that it names with
    ``dataset``; otherwise ``partition-id`` picks its part. `fedgh_app.config.site` says where images lie.
    """
    part = node_config.get("partition-id")
    name = str(node_config.get("name", "0" if part is None else part))
    speed = _speed(data, node_config, name)
    root = node_config.get("data-root")
    if root is not None and not Path(str(root)).expanduser().is_dir():
        raise UserError(f"data-root={root}: no such directory; expected the one that holds the images of client {name}")
    site = _own(data, node_config, name, speed) if data.held_by_sites else _dealt(data, node_config, name, speed)
    if len(site.train) == 0:
        raise UserError(f"client {name}: no training image under {site.examples.spec.name}; expected at least 1")
    return site


def _own(data: FederatedData, node_config: Values, name: str, speed: float) -> Site:
    known = list(data.sets)
    held = node_config.get("dataset", None if data.several else known[0])
    if held not in known:
        raise UserError(f"client {name}: its node config says dataset={held}; expected one of {', '.join(known)}")
    if "partition-id" not in node_config and "data-root" not in node_config:
        raise UserError(f"client {name}: its node config has no data-root; expected data-root=PATH")
    examples = data.sets[held].examples
    return Site(name, name, held, examples, examples.indices("train"), examples.indices("test"), speed)


def _dealt(data: FederatedData, node_config: Values, name: str, speed: float) -> Site:
    part = node_config.get("partition-id")
    if part is None or "num-partitions" not in node_config:
        raise UserError(
            f"client {name}: its node config has no partition-id and num-partitions; expected both, "
            "or partition=site for nodes that hold their own data"
        )
    held, label, train, test = data.part(int(part), int(node_config["num-partitions"]))
    if node_config.get("dataset", held) != held:
        raise UserError(
            f"client {name}: its node config says dataset={node_config['dataset']}, but part {part} of the "
            f"partition is of {held}; expected partition=site for nodes that hold their own data"
        )
    own, tests = (np.asarray(side, dtype=np.int64) for side in (train, test))
    return Site(name, label, held, data.sets[held].examples, own, tests, speed)


def _speed(data: FederatedData, node_config: Values, name: str) -> float:
    """What the node says of itself, else what is configured of it."""
    speed = node_config.get("speed", data.speeds.get(name, 1.0))
    if isinstance(speed, bool) or not isinstance(speed, int | float) or not 0 < speed < math.inf:
        raise UserError(f"client {name}: speed={speed}; expected a number above 0, 1 for a client like the others")
    return float(speed)
