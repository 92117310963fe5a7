"""Imports point one way: glue to strategies, glue to pose."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def imported(file: Path) -> set[str]:
    """Top-level and dotted names that a file imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def under(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("file", sorted((ROOT / "strategies").rglob("*.py")), ids=lambda file: file.name)
def test_strategies_know_neither_the_app_nor_pose(file: Path) -> None:
    assert not [name for name in imported(file) if under(name, "fedgh_app")]
    assert not re.search(r"\bposes?\b", file.read_text(), re.IGNORECASE)


@pytest.mark.parametrize("file", sorted((ROOT / "fedgh_app/pose").rglob("*.py")), ids=lambda file: file.name)
def test_pose_knows_neither_flower_nor_the_strategies(file: Path) -> None:
    rest = [
        name
        for name in imported(file)
        if any(under(name, package) for package in ("flwr", "flwr_datasets", "strategies", "hydra", "omegaconf"))
        or (under(name, "fedgh_app") and not under(name, "fedgh_app.pose"))
    ]
    assert rest == []


def test_a_client_imports_neither_flower_datasets_nor_matplotlib() -> None:
    import subprocess
    import sys

    heavy = ("datasets", "flwr_datasets", "matplotlib")
    code = f"import sys, fedgh_app.client_app; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_datasets_is_no_package() -> None:
    assert not (ROOT / "datasets/__init__.py").exists()
