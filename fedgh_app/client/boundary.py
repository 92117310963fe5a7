"""The border of a site: what it takes from the server's config, and what it tells the server when something fails.

A node is a site once its node config names a ``data-root``. It trusts the app's code; config and messages come from a
server that may be anybody's. Other nodes are simulated, on the machine of the one who wrote the config.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable
from omegaconf import DictConfig

from fedgh_app.config.combinations import keeps_nothing
from fedgh_app.config.compose import fedgh_home
from fedgh_app.errors import RunFailed, UserError
from fedgh_app.vision.cores import usable_cores


@dataclass(frozen=True)
class Own:
    """The paths that a node's own config names.

    Attributes:
        data_root: folder of its images, which makes it a site.
        teacher: run directory of its copy of the teacher.
        weights: checkpoint file of its copy of the backbone's weights.
    """

    data_root: str | None = None
    teacher: str | None = None
    weights: str | None = None

    @classmethod
    def of(cls, node_config: Mapping[str, Any]) -> Own:
        """Those of a node config."""
        named = (node_config.get(key) for key in ("data-root", "teacher", "weights"))
        return cls(*(None if path is None else str(path) for path in named))


def bounded(config: DictConfig, own: Own) -> DictConfig:
    """The config as a node takes it: at a site, each path in it is the site's own, or none.

    Raises UserError where training needs a file that the site has not named.
    """
    taken = copy.deepcopy(config)
    if "run" in taken.teacher and own.teacher is not None:
        taken.teacher.run = own.teacher
    if taken.model.get("weights") is not None and own.weights is not None:
        taken.model.weights = own.weights
    if own.data_root is None:
        return taken
    _root_all(taken, own.data_root)
    taken.run_dir = taken.init = taken.resume = None
    taken.runtime.client_cpus = min(taken.runtime.client_cpus or usable_cores(), usable_cores())
    if "run" in taken.teacher and own.teacher is None:
        taken.teacher.run = None
    if "weights" in taken.model and own.weights is None:
        # What is shared comes with each message; only what stays on the client starts from them.
        if taken.model.weights is not None and not keeps_nothing(taken):
            raise UserError(
                f"model.weights={taken.model.weights}: a site reads no file that the server names; "
                "expected weights=PATH in its node config, or sharing=all"
            )
        taken.model.weights = None
    return taken


def _root_all(node: DictConfig, root: str) -> None:
    """Let every data set of the config lie under ``root``."""
    for key, value in node.items():
        if isinstance(value, DictConfig):
            _root_all(value, root)
        elif key == "root":
            node[key] = root


def discreet(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A mod of the ClientApp: of a site's failure the server learns no path, no file's name, and no value of its data.

    What was raised stays in the site's own log, as the cause of what the server is told.
    """
    own = Own.of(context.node_config)
    try:
        return call_next(message, context)
    except Exception as error:
        if own.data_root is None:
            raise
        if not isinstance(error, UserError | RunFailed):
            raise RunFailed(f"{type(error).__name__} at the site; its own log says more") from error
        if any(path in str(error) for path in _paths(own)):
            raise RunFailed("a file of the site cannot be used; its own log says which and why") from error
        raise


def _paths(own: Own) -> set[str]:
    """The site's paths, as its config has them and as they are resolved. A message about a file begins with it."""
    named = [*filter(None, astuple(own)), fedgh_home()]
    return {str(path) for name in named for path in (name, Path(name).expanduser(), Path(name).expanduser().resolve())}
