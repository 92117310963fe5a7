"""The config as a site takes it: no path of the server's is read there.

A node is a site once its node config names a ``data-root``. It trusts the app's code; config and messages come from a
server that may be anybody's. Other nodes are simulated, on the machine of the one who wrote the config.
"""

import copy
from dataclasses import dataclass
from typing import Self

from omegaconf import DictConfig

from fedgh_app.config.choices import keeps_nothing
from fedgh_app.errors import UserError
from fedgh_app.resources import Values
from fedgh_app.vision.threads import usable_cores


@dataclass(frozen=True)
class SitePaths:
    """The paths that a node's own config names."""

    data_root: str | None = None  # folder of its images, which makes it a site
    teacher: str | None = None  # run directory of its copy of the teacher
    weights: str | None = None  # checkpoint file of its copy of the backbone's weights

    @classmethod
    def of(cls, node_config: Values) -> Self:
        """Those of a node config."""
        named = (node_config.get(key) for key in ("data-root", "teacher", "weights"))
        return cls(*(None if path is None else str(path) for path in named))


def bounded(config: DictConfig, paths: SitePaths) -> DictConfig:
    """The config as a node takes it: a site's paths are its own; UserError where training needs one that it lacks."""
    taken = copy.deepcopy(config)
    if "run" in taken.teacher and paths.teacher is not None:
        taken.teacher.run = paths.teacher
    if taken.model.get("weights") is not None and paths.weights is not None:
        taken.model.weights = paths.weights
    if paths.data_root is None:
        return taken
    _root_all(taken, paths.data_root)
    taken.run_dir = taken.init = taken.resume = None
    taken.runtime.client_cpus = min(taken.runtime.client_cpus or usable_cores(), usable_cores())
    if "run" in taken.teacher and paths.teacher is None:
        taken.teacher.run = None
    if "weights" in taken.model and paths.weights is None:
        # What is shared comes with each message; only what stays on the client starts from them.
        if taken.model.weights is not None and not keeps_nothing(taken):
            raise UserError(
                f"model.weights={taken.model.weights}: a site reads no file that the server names; "
                "expected weights=PATH in its node config, or sharing=all"
            )
        taken.model.weights = None
    return taken


def _root_all(node: DictConfig, root: str) -> None:
    for key, value in node.items():
        if isinstance(value, DictConfig):
            _root_all(value, root)
        elif key == "root":
            node[key] = root
