"""Copies of the repository that a test may change, and the command of such a copy."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from conftest import REPOSITORY

TREE = ("fedgh_app", "strategies", "conf", "datasets", "docs", "pyproject.toml", "README.md", "LICENSE")
FEDGH = (sys.executable, "-P", "-c", "from fedgh_app.cli import main; main()")


def copied(folder: Path) -> Path:
    """``folder``, with all that the app consists of."""
    for name in TREE:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def environment_of(tree: Path) -> dict[str, str]:
    """In which processes run the code of a copy."""
    return os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
