"""One configuration for every process: composed by Hydra, checked before anything starts.

The launcher, the ServerApp and each ClientApp compose the same config from the same list of overrides, so nothing but
that list has to travel.
"""

from __future__ import annotations

import copy
import functools
import os
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedgh_app.config.validation import check_config, check_keys, check_overrides, check_resolved
from fedgh_app.errors import UserError, first_line

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"


def fedgh_home() -> Path:
    """Where data sets, crop caches and partitions lie: ``$FEDGH_HOME``, else ``~/.cache/fedgh``."""
    return Path(os.environ.get("FEDGH_HOME") or Path.home() / ".cache" / "fedgh").expanduser().resolve()


OmegaConf.register_new_resolver("fedgh_home", lambda: str(fedgh_home()), replace=True)
# A site composes overrides of somebody else, who could read its environment out of an error message.
OmegaConf.clear_resolver("oc.env")


def groups() -> dict[str, list[str]]:
    """The config groups and the choices of each, as the files under ``conf/`` stand."""
    return {
        folder.name: sorted(choice.stem for choice in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir()
    }


def join_overrides(overrides: Sequence[str]) -> str:
    """Many overrides as the one string that Flower's run config carries; `split_overrides` undoes it."""
    return shlex.join(overrides)


def split_overrides(text: str) -> list[str]:
    """The overrides in ``text``, separated by blanks and quoted as in a shell.

    Raises UserError if a quote is left open.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"overrides={text!r}: {error}; expected overrides separated by blanks") from None


def quoted(path: Path) -> str:
    """A path as an override's value: quoted for Hydra's grammar, which gives blanks, commas and ``=`` a meaning."""
    # Hydra takes a backslash for itself, but before a quote and at the end of a quoted value.
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), str(path))
    return f"'{text}'"


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Compose and check the config of one run.

    Args:
        overrides: Hydra overrides, such as ``["strategy=fedaw", "rounds=3"]``.

    Raises:
        UserError: an unknown key or choice, a wrong type, a value out of range, a forbidden ``_target_``; one line
            that names the key, the value, and what was expected.
    """
    parsed = parse_overrides(overrides)
    check_overrides(parsed, groups())
    composed_by_hydra = [item for item in parsed if item.key_or_group in groups() or item.is_hydra_override()]
    # `experiment=null` is the default, which Hydra cannot say of an optional group.
    choices = tuple(str(item.input_line) for item in composed_by_hydra if item.value() is not None)
    base = _resolved(choices, [])
    check_keys(base, parsed, groups())
    config = _resolved(choices, [item for item in parsed if item not in composed_by_hydra])
    check_config(base, config)
    if config.resume is not None:
        config.run_dir = config.resume  # a run goes on where it lies
    return config


def run_name(config: DictConfig) -> str:
    """Name of a run directory that nobody named: time, strategy (or baseline), data set, seed."""
    strategy = str(config.strategy._target_).rsplit(".", 1)[-1].lower()
    kind = config.runtime.name if config.runtime.name in ("centralised", "local") else strategy
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{kind}-{config.dataset.spec}-s{config.seed}"


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a multirun, in Hydra's own order (the product of all sweeps)."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    try:
        batches = BasicSweeper.split_arguments(parse_overrides(overrides), None)
    except HydraException as error:
        raise UserError(f"{' '.join(overrides)}: {first_line(error)}") from None
    return [list(job) for batch in batches for job in batch]


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Overrides by their parts; UserError where Hydra cannot read one."""
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(f"cannot read the overrides {list(overrides)}: {first_line(error)}") from None


def _resolved(choices: tuple[str, ...], values: Sequence[Override]) -> DictConfig:
    """The config of ``choices`` with ``values`` set in it, and every interpolation replaced by what it stands for."""
    try:
        config = copy.deepcopy(_composed(CONF, choices))
        ConfigLoaderImpl._apply_overrides_to_config(list(values), config)
        OmegaConf.resolve(config)
        check_resolved(OmegaConf.to_container(config))
        return config
    except MissingConfigException as error:
        raise UserError(first_line(error)) from None
    except (HydraException, OmegaConfBaseException) as error:
        given = [*choices, *(str(item.input_line) for item in values)]
        raise UserError(f"{' '.join(given)}: {first_line(error.__cause__ or error)}") from None


# Hydra takes a third of a second for this, and a sweep's jobs differ in values more often than in choices.
@functools.lru_cache(maxsize=32)
def _composed(folder: Path, choices: tuple[str, ...]) -> DictConfig:
    """What Hydra makes of the files under ``folder``."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(folder), version_base="1.3"):
        return compose(config_name="config", overrides=list(choices))
