"""On what a sweep was run, for whoever wants its numbers again."""

import contextlib
import platform
import subprocess
from importlib import metadata

from fedgh_app.resources import INSTALLED, ROOT
from fedgh_app.runs.records import Record
from fedgh_app.vision.threads import usable_cores

PACKAGES = ("fedgh", "flwr", "ray", "torch", "torchvision", "numpy", "opencv-python-headless", "torchjd")


class Machine(Record):
    """On what a sweep was run."""

    python: str
    system: str
    cores: int
    packages: dict[str, str]  # versions by name
    commit: str | None  # of fedgh's checkout, with ``+`` where files differed from it; None outside of one


def this_machine() -> Machine:
    """What fedgh runs on."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    python, system = platform.python_version(), platform.platform()
    return Machine(python=python, system=system, cores=usable_cores(), packages=versions, commit=_commit())


def _commit() -> str | None:
    if INSTALLED:  # perhaps within a checkout of something else
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
