"""On what a sweep was run, for whoever wants its numbers again."""

import contextlib
import platform
import subprocess
from importlib import metadata
from typing import Any

from fedgh_app.resources import INSTALLED, ROOT
from fedgh_app.vision.threads import usable_cores

PACKAGES = ("fedgh", "flwr", "ray", "torch", "torchvision", "numpy", "opencv-python-headless", "torchjd")


def environment() -> dict[str, Any]:
    """Versions, the machine's kind, and the commit of the checkout that fedgh runs from (None outside of one)."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": usable_cores(),
        "packages": versions,
        "commit": commit(),
    }


def commit() -> str | None:
    """The checkout's commit, with ``+`` where files differ from it; None where fedgh does not run from a checkout."""
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
