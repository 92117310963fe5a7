"""The files under ``conf/``: groups, their choices, and what each choice says of itself."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedgh_app.resources import CONF, Values

# What a choice says of itself, beside the values of what it describes: which others it goes with (`refusals`), which a
# composed config leaves out; and facts for the rest of the app, which nobody overrides and no constructor is given.
TERMS = ("needs", "refuses")
FACTS = {"keeps": "sharing", "server_part": "objective"}  # by the group whose choices tell it


def groups() -> dict[str, list[str]]:
    """The config groups and the choices of each, as the files under ``conf/`` stand."""
    return {
        folder.name: sorted(choice.stem for choice in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir()
    }


def values_of(group: str, choice: str) -> DictConfig:
    """The values in the file of a choice, without what it says of itself."""
    file: Any = OmegaConf.load(CONF / group / f"{choice}.yaml")
    return OmegaConf.masked_copy(file, [key for key in file if key not in (*TERMS, *FACTS)])


def plain_values(node: DictConfig) -> dict[str, Any]:
    """A config, or a group of one, without what OmegaConf puts around it."""
    return OmegaConf.to_container(node)  # type: ignore[return-value]  # a dict of it is a dict


def keeps_nothing(config: Values) -> bool:
    """Whether clients send all of their model (``sharing=all``)."""
    return bool(config["sharing"].get("keeps") == "nothing")


def shown(value: object) -> str:
    """A value as the command line has it."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
