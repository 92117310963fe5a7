"""Imports point one way, from the commands down to what every task shares."""

import ast
import functools
import importlib
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from fedgh_app.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def imported(file: Path) -> set[str]:
    """Top-level and dotted names that a file imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(parsed(file)):
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


# A package each.
OF_TASKS = tuple(module.split(".")[1] for module in TASKS.values())

# Rooms of fedgh_app, from those that know all others to those that know none; those in one line know not each other.
LEVELS = (
    ("cli",),
    ("reports",),
    ("runtimes",),
    ("server_app", "client_app"),
    ("assembly",),
    ("callbacks",),
    ("server", "client"),
    ("model_card", "plots"),
    ("grids", "data"),
    ("runs",),
    ("config",),
    OF_TASKS,
    ("task",),
    ("tasks", "vision"),
    ("errors", "words", "flower", "resources"),
)
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}


def room_of(name: str) -> str:
    """The room of fedgh_app that a dotted name or a file's path lies in."""
    return name.replace("/", ".").removeprefix("fedgh_app.").removesuffix(".py").split(".")[0]


@pytest.mark.parametrize("file", sorted((ROOT / "fedgh_app").rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    room = room_of(str(file.relative_to(ROOT)))
    if room == "__init__":
        return
    known = {room_of(name) for name in imported(file) if under(name, "fedgh_app")} - {room, "fedgh_app"}
    assert not [other for other in known if LEVEL[other] <= LEVEL[room]]


@pytest.mark.parametrize("room", ["vision", *OF_TASKS])
def test_a_task_knows_neither_flower_nor_the_strategies(room: str) -> None:
    outside = ("flwr", "flwr_datasets", "strategies", "hydra", "omegaconf")
    for file in (ROOT / "fedgh_app" / room).rglob("*.py"):
        if file.name != "task.py":
            assert not [name for name in imported(file) if any(under(name, package) for package in outside)], file


# What Flower documents, and so keeps; `fedgh_app.flower` is the door to the rest.
PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.client", "flwr.common.logger", "flwr.common.typing")


def test_only_one_module_imports_what_flower_does_not_document() -> None:
    for file in (file for file in CODE if "benchmarks" not in file.parts):
        of_flower = {name for name in imported(file) if under(name, "flwr")}
        private = {name for name in of_flower if not any(under(name, module) for module in PUBLIC)}
        assert not private or file.name == "flower.py", (file, private)


def test_what_it_imports_is_in_the_flower_of_the_constraints() -> None:
    wanted = [
        (node.module, alias.name)
        for node in ast.walk(parsed(ROOT / "fedgh_app" / "flower.py"))
        if isinstance(node, ast.ImportFrom) and node.module and under(node.module, "flwr")
        for alias in node.names
    ]
    assert len(wanted) > 20
    assert not [(module, name) for module, name in wanted if not hasattr(importlib.import_module(module), name)]
    assert f"flwr=={metadata.version('flwr')}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_a_client_imports_neither_flower_datasets_nor_matplotlib() -> None:
    import subprocess
    import sys

    heavy = ("datasets", "flwr_datasets", "matplotlib")
    code = f"import sys, fedgh_app.client_app; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_datasets_is_no_package() -> None:
    assert not (ROOT / "datasets/__init__.py").exists()


CODE = sorted(file for folder in ("fedgh_app", "strategies", "benchmarks") for file in (ROOT / folder).rglob("*.py"))

# What runs code that a file holds, or could be made to; and the calls that are safe with one argument alone.
UNSAFE_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system"}
SAFE_ONLY_WITH = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


def calls(file: Path) -> Iterator[tuple[str, dict[str | None, ast.expr]]]:
    """The name that each call of a file has there, and its keyword arguments."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}


@pytest.mark.parametrize("file", CODE, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_nothing_is_unpickled_and_no_text_is_run(file: Path) -> None:
    assert not [name for name in imported(file) if any(under(name, module) for module in UNSAFE_MODULES)]
    for name, arguments in calls(file):
        assert name not in UNSAFE_CALLS
        if name.endswith((".load", ".read_pickle")) and name.split(".")[0] in ("torch", "np", "numpy", "pd", "pandas"):
            key, value = SAFE_ONLY_WITH[name]
            said = arguments.get(key)
            assert isinstance(said, ast.Constant) and said.value is value, f"{name} without {key}={value}"
        shell = arguments.get("shell")
        assert shell is None or (isinstance(shell, ast.Constant) and shell.value is False)
        pretrained = arguments.get("pretrained")
        assert pretrained is None or (isinstance(pretrained, ast.Constant) and pretrained.value is False)


def test_the_rule_finds_what_it_is_for(tmp_path: Path) -> None:
    for number, line in enumerate(
        (
            "import pickle",
            "from joblib import load",
            "torch.load(path)",
            "torch.load(path, weights_only=False)",
            "np.load(path)",
            "np.load(path, allow_pickle=True)",
            "yaml.load(text, Loader=yaml.Loader)",
            "eval(text)",
            "subprocess.run(line, shell=True)",
            "timm.create_model(name, pretrained=True)",
        )
    ):
        file = tmp_path / f"case{number}.py"
        file.write_text(line)
        with pytest.raises(AssertionError):
            test_nothing_is_unpickled_and_no_text_is_run(file)


def test_torch_load_stands_in_one_place_alone() -> None:
    found = [file.name for file in CODE for name, _ in calls(file) if name == "torch.load"]
    assert found == ["backbones.py"]


def test_every_test_file_has_a_name_of_its_own() -> None:
    """Folders of tests are no packages: of two files of one name pytest would leave one out."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
