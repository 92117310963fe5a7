"""One configuration for every process: composed by Hydra, checked before anything starts.

The launcher, the ServerApp and each ClientApp compose the same config from the same list of overrides, so nothing but
that list has to travel.
"""

import copy
import functools
import itertools
import os
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fedgh_app.config import choices as files
from fedgh_app.config.choices import TERMS, groups
from fedgh_app.config.refusals import Composed, chosen
from fedgh_app.config.validation import check_config, check_keys, check_overrides, check_resolved
from fedgh_app.errors import UserError, first_line


def fedgh_home() -> Path:
    """Where data sets, crop caches and partitions lie: ``$FEDGH_HOME``, else ``~/.cache/fedgh``."""
    return Path(os.environ.get("FEDGH_HOME") or Path.home() / ".cache" / "fedgh").expanduser().resolve()


OmegaConf.register_new_resolver("fedgh_home", lambda: str(fedgh_home()), replace=True)
# A site composes overrides of somebody else, who could read its environment out of an error message.
OmegaConf.clear_resolver("oc.env")


def join_overrides(overrides: Sequence[str]) -> str:
    """Many overrides as the one string that Flower's run config carries; `split_overrides` undoes it."""
    return shlex.join(overrides)


def split_overrides(text: str) -> list[str]:
    """The overrides in ``text``, separated by blanks and quoted as in a shell; UserError if a quote is left open."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"overrides={text!r}: {error}; expected overrides separated by blanks") from None


def quoted(path: Path) -> str:
    """A path as an override's value: quoted for Hydra's grammar, which gives blanks, commas and ``=`` a meaning."""
    # Hydra takes a backslash for itself, but before a quote and at the end of a quoted value.
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), str(path))
    return f"'{text}'"


def absolute_paths(config: DictConfig) -> list[str]:
    """Overrides that make every path absolute: Flower's processes have working directories of their own."""
    paths: dict[str, str | None] = {
        "init": config.init,
        "resume": config.resume,
        "teacher.run": config.teacher.get("run"),
    }
    paths |= dict(_data_roots(config))
    weights = config.model.get("weights")
    if weights and Path(weights).expanduser().exists():  # else it is the name of a torchvision enum
        paths["model.weights"] = weights
    return [f"{key}={quoted(Path(value).expanduser().resolve())}" for key, value in paths.items() if value is not None]


def _data_roots(node: DictConfig, path: str = "") -> Iterator[tuple[str, str]]:
    """Where each data set of the config lies, by the key that says so."""
    for key, value in node.items():
        if isinstance(value, DictConfig):
            yield from _data_roots(value, f"{path}{key!s}.")
        elif key == "root":
            yield f"{path}root", value


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Compose and check the config of one run from overrides such as ``["strategy=fedaw", "rounds=3"]``.

    Raises UserError, in one line that names the key, the value and what was expected.
    """
    composed = composed_of(overrides)
    composed.check()
    config = composed.config
    if config.resume is not None:
        config.run_dir = config.resume  # a run goes on where it lies
    return config


def composed_of(overrides: Sequence[str]) -> Composed:
    """The config of one run and its choices, checked but for what choices refuse; UserError as `compose_config`."""
    parsed = parse_overrides(overrides)
    check_overrides(parsed, groups())
    by_hydra = [item for item in parsed if item.key_or_group in groups()]
    # `experiment=null` is the default, which Hydra cannot say of an optional group.
    given = tuple(str(item.input_line) for item in by_hydra if item.value() is not None)
    base, choices = _resolved(given, [])
    check_keys(base, parsed, groups())
    config, _ = _resolved(given, [item for item in parsed if item not in by_hydra])
    check_config(base, config)
    return Composed(config, chosen(base, config, choices))


def run_name(config: DictConfig) -> str:
    """Name of a run directory that nobody named: time, strategy (or baseline), data set, seed."""
    strategy = str(config.strategy._target_).rsplit(".", 1)[-1].lower()
    kind = config.runtime.name if config.runtime.name in ("centralised", "local") else strategy
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{kind}-{config.dataset.spec}-s{config.seed}"


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a multirun: the product of all sweeps, of which the last varies fastest."""
    jobs: dict[str, list[str]] = {}  # of a key that is given twice the last values, in the place of the first
    for item in parse_overrides(overrides):
        key = item.get_key_element()
        if item.is_sweep_override() and not item.is_discrete_sweep():
            raise UserError(f"{item.input_line}: expected values to run one after the other, as {key}=1,2,3")
        value = item.value()
        if isinstance(value, Glob):
            values = value.filter(groups().get(item.key_or_group, []))
            if not values:
                raise UserError(f"{item.input_line}: fits no choice; expected one that `fedgh list` shows")
        elif item.is_sweep_override():
            values = list(item.sweep_string_iterator())
        else:
            values = [item.get_value_element_as_str()]
        jobs[key] = [f"{key}={value}" for value in values]
    return [list(job) for job in itertools.product(*jobs.values())]


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Overrides by their parts; UserError where Hydra cannot read one."""
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(f"cannot read the overrides {list(overrides)}: {first_line(error)}") from None


def _resolved(given: tuple[str, ...], values: Sequence[Override]) -> tuple[DictConfig, Mapping[str, str]]:
    """The config of some choices with ``values`` set in it, and every interpolation replaced by what it stands for."""
    try:
        config, choices = _composed(files.CONF, given)
        config = copy.deepcopy(config)
        for item in values:
            _set(config, item)
        OmegaConf.resolve(config)
        check_resolved(OmegaConf.to_container(config))
        return config, choices
    except MissingConfigException as error:
        raise UserError(first_line(error)) from None
    except (HydraException, OmegaConfBaseException) as error:
        told = [*given, *(str(item.input_line) for item in values)]
        raise UserError(f"{' '.join(told)}: {first_line(error.__cause__ or error)}") from None


def _set(config: DictConfig, item: Override) -> None:
    key, value = item.key_or_group, item.value()
    there = OmegaConf.select(config, key)
    if item.is_delete():
        if there is None or value not in (None, there):
            raise UserError(f"{item.input_line}: expected a key that is there, with that value")
        above, _, name = key.rpartition(".")
        with open_dict(config):
            del OmegaConf.select(config, above)[name]  # of the whole config nothing may go: `check_keys`
    elif item.is_add() and there is not None and not isinstance(value, dict | list):
        raise UserError(f"{item.input_line}: {key} is there; expected {str(item.input_line).lstrip('+')}")
    else:
        OmegaConf.update(config, key, value, merge=True, force_add=item.is_add() or item.is_force_add())


# Hydra takes a third of a second for this, and a sweep's jobs differ in values more often than in choices.
@functools.lru_cache(maxsize=32)
def _composed(folder: Path, given: tuple[str, ...]) -> tuple[DictConfig, Mapping[str, str]]:
    """What Hydra makes of the files under ``folder``, and the choice of each group, in the order of config.yaml."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(folder), version_base="1.3"):
        config = compose(config_name="config", overrides=list(given), return_hydra_config=True)
    made = reversed(config.hydra.runtime.choices.items())
    choices = {key: str(choice) for key, choice in made if choice is not None and not key.startswith("hydra/")}
    with open_dict(config):
        del config["hydra"]
        for group, _, place in (key.partition("@") for key in choices):
            for term in TERMS:
                (OmegaConf.select(config, place or group) or {}).pop(term, None)
    return config, choices
